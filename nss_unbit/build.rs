//! How the library is linked.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let mut arguments = vec![
        "-nostartfiles", // no constructors: loading it runs none of its code
        "-Wl,-soname,libnss_unbit.so.2",
        "-Wl,-z,defs", // a symbol that nobody has is an error here, not in somebody's login
        "-Wl,-z,now",  // and bound at once, so that the table of addresses is read-only afterwards
        "-Wl,-z,relro",
        "-Wl,-z,noexecstack",
        "-Wl,-z,noseparate-code", // two mappings, as few as there can be
        "-Wl,--hash-style=gnu",
        "-Wl,--build-id=sha1",
    ];
    if std::env::var("PROFILE").is_ok_and(|profile| profile == "debug") {
        // What an unoptimised build takes from the compiler's own `core` names the unwinder, though nothing here unwinds.
        arguments.push("-Wl,--defsym=rust_eh_personality=0");
    }
    for argument in arguments {
        println!("cargo:rustc-cdylib-link-arg={argument}");
    }
    // rustc adds the version script: what is `no_mangle` is visible, and nothing else.
}
