//! How the library is linked.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let mut arguments = vec![
        "-Wl,-soname,libnss_unbit.so.2",
        "-Wl,-z,defs", // a symbol that nobody has is an error here, not in somebody's login
        "-Wl,-z,now",  // and bound at once, so that the table of addresses is read-only afterwards
        "-Wl,-z,relro",
        "-Wl,-z,noexecstack",
        "-Wl,-z,noseparate-code", // two mappings, as few as there can be
        "-Wl,--hash-style=gnu",
        "-Wl,--build-id=sha1",
    ];
    // No constructors: loading it runs none of its code. In release alone, because the cargo of Debian 13 gives the arguments of
    // the library to its unit tests too, and those need the start files.
    if std::env::var("PROFILE").is_ok_and(|profile| profile == "release") {
        arguments.push("-nostartfiles");
    }
    for argument in arguments {
        println!("cargo:rustc-cdylib-link-arg={argument}");
    }
    // rustc adds the version script: what is `no_mangle` is visible, and nothing else.
}
