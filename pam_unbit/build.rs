//! Links the run-time libpam.so.0 by its file name, so that building needs no libpam0g-dev.
fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-link-arg=-l:libpam.so.0");
}
