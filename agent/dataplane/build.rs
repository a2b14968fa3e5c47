//! Embeds the BPF object that `cargo xtask` built, or an empty stub where there is none, so that checks and unit tests
//! need no BPF toolchain. Loading the stub is an error that says what to run.

use std::{env, fs, path::PathBuf};

fn main() {
    println!("cargo::rerun-if-env-changed=SEAWAY_BPF_OBJECT");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("seaway.o");
    let object = env::var_os("SEAWAY_BPF_OBJECT").map(PathBuf::from);
    if let Some(object) = &object {
        println!("cargo::rerun-if-changed={}", object.display());
    }
    let bytes = object.and_then(|object| fs::read(object).ok()).unwrap_or_default();
    fs::write(&out, bytes).unwrap_or_else(|error| panic!("writing {}: {error}", out.display()));
}
