//! Addresses are physical from the first instruction on: the image is linked where it is loaded, at 2 MiB.

fn main() {
    println!("cargo::rustc-link-arg-bins=--image-base=0x200000");
}
