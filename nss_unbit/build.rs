//! How the library is linked.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let mut arguments = vec![
        "-Wl,-soname,libnss_unbit.so.2",
        "-Wl,-z,defs", // an undefined symbol is an error here, not in a login
        "-Wl,-z,now",  // with relro: the table of addresses is read-only once the library is loaded
        "-Wl,-z,relro",
        "-Wl,-z,noexecstack",
        "-Wl,-z,noseparate-code", // two mappings, the fewest that are possible
        "-Wl,--hash-style=gnu",
        "-Wl,--build-id=sha1",
    ];
    // No constructors, so loading it runs none of its code. In release builds only: the Cargo of
    // Debian 13 passes these arguments to the unit tests as well, and those need the start-up
    // files.
    if std::env::var("PROFILE").is_ok_and(|profile| profile == "release") {
        arguments.push("-nostartfiles");
    }
    for argument in arguments {
        println!("cargo:rustc-cdylib-link-arg={argument}");
    }
    // rustc adds the version script, by which only `no_mangle` functions are visible.
}
