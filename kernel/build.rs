//! Hands the linker script to the linker: cargo runs the linker elsewhere, so the path must be absolute.

fn main() {
    let folder = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    println!("cargo::rustc-link-arg=--script={folder}/src/linker.ld");
    println!("cargo::rerun-if-changed=src/linker.ld");
}
