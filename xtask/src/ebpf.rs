//! The BPF object: built from `ebpf/` when its sources changed, with what the machine has.
//!
//! The ecosystem's way is a nightly toolchain with rust-src, and bpf-linker. Where these are not, Debian's packages of
//! the same parts serve: its rustc with the library sources, told to allow unstable features, and a bpf-linker built
//! once against its LLVM. Each thing that is installed is named.

mod stack;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::{install, run};

const TARGET: &str = "bpfel-unknown-none";

/// Debian's compiler and library sources.
const RUST_PACKAGES: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];

/// What bpf-linker is built against.
const LLVM_PACKAGES: [&str; 6] =
    ["llvm-22-dev", "clang-22", "libpolly-22-dev", "zlib1g-dev", "libzstd-dev", "libxml2-dev"];
const LLVM_PREFIX: &str = "/usr/lib/llvm-22";
const BPF_LINKER_VERSION: &str = "0.13.0";

/// Variables by which an outer cargo would steer the inner one.
const OUTER: [&str; 9] = [
    "CARGO",
    "CARGO_BUILD_TARGET",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_TARGET_DIR",
    "RUSTC",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTC_WRAPPER",
    "RUSTFLAGS",
    "RUSTUP_TOOLCHAIN",
];

/// Builds the object where its sources changed since the last time, and returns where it is. The file is replaced as a
/// whole, and only by other contents.
pub(crate) fn build() -> Result<PathBuf> {
    let object = std::env::var_os("SEAWAY_BPF_OBJECT")
        .map_or_else(|| run::root().join("target/bpf/seaway.o"), PathBuf::from);
    let stamp = object.with_extension("o.sha256");
    let hash = hash_of(&run::root().join("ebpf"))?;
    if object.is_file() && fs::read_to_string(&stamp).is_ok_and(|built| built == hash) {
        return Ok(object);
    }
    let target_dir = run::target().join("ebpf");
    let mut cargo = toolchain()?.cargo();
    cargo
        .current_dir(run::root().join("ebpf"))
        .args(["build", "--quiet", "--release", "--locked", "-Z", "build-std=core", "--target", TARGET])
        .arg("--target-dir")
        .arg(&target_dir);
    run::output(&mut cargo).context("compiling the BPF programs")?;
    let built = target_dir.join(TARGET).join("release/seaway");
    let bytes = fs::read(&built).with_context(|| format!("reading {}", built.display()))?;
    let deepest = stack::deepest(&bytes).context("measuring the stack of the BPF programs")?;
    run::say(&format!("    deepest stack of the BPF programs: {deepest}"));
    if deepest.bytes > stack::LIMIT {
        run::say("    warning: kernels below 6.8 will refuse that; `cargo xtask test emulated` shows it");
    }
    if fs::read(&object).ok().as_deref() != Some(bytes.as_slice()) {
        replace(&object, &bytes)?;
    }
    replace(&stamp, hash.as_bytes())?;
    Ok(object)
}

/// A compiler for unstable targets with the library's sources, and a linker for it.
enum Toolchain {
    Nightly { name: String, linker: PathBuf },
    Debian { linker: PathBuf },
}

impl Toolchain {
    fn cargo(&self) -> Command {
        let (mut cargo, linker) = match self {
            Self::Nightly { name, linker } => {
                let mut rustup = Command::new("rustup");
                rustup.args(["run", name, "cargo"]);
                (rustup, linker)
            }
            Self::Debian { linker } => (Command::new("/usr/bin/cargo"), linker),
        };
        for variable in OUTER {
            cargo.env_remove(variable);
        }
        if matches!(self, Self::Debian { .. }) {
            cargo.env("RUSTC", "/usr/bin/rustc").env("RUSTC_BOOTSTRAP", "1");
        }
        cargo.env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", linker);
        cargo
    }
}

fn toolchain() -> Result<Toolchain> {
    if let (Some(name), Some(linker)) = (nightly_with_sources(), run::which("bpf-linker")) {
        run::say(&format!("    building with {name} and {}", linker.display()));
        return Ok(Toolchain::Nightly { name, linker });
    }
    install::packages_installed(&missing(&RUST_PACKAGES)).context(
        "the BPF programs need a nightly toolchain with rust-src and bpf-linker, or Debian's packages of the same",
    )?;
    Ok(Toolchain::Debian { linker: debian_linker()? })
}

/// The first installed nightly that has the library's sources.
fn nightly_with_sources() -> Option<String> {
    let listed = run::output(Command::new("rustup").args(["toolchain", "list"])).ok()?;
    listed
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| name.starts_with("nightly"))
        .find(|name| {
            let sysroot =
                run::output(Command::new("rustup").args(["run", name, "rustc", "--print", "sysroot"]));
            sysroot.is_ok_and(|root| {
                Path::new(root.trim()).join("lib/rustlib/src/rust/library/core/Cargo.toml").is_file()
            })
        })
        .map(str::to_owned)
}

/// bpf-linker from the cache, or built into it.
fn debian_linker() -> Result<PathBuf> {
    let cache = if nix::unistd::geteuid().is_root() {
        PathBuf::from("/var/cache/seaway/toolchain")
    } else {
        run::root().join("target/tools")
    };
    let candidates = [
        run::which("bpf-linker"),
        Some(PathBuf::from("/var/cache/seaway/toolchain/bin/bpf-linker")),
        Some(cache.join("bin/bpf-linker")),
    ];
    if let Some(linker) = candidates.into_iter().flatten().find(|linker| links_with_llvm_of_debian(linker)) {
        return Ok(linker);
    }
    install::packages_installed(&missing(&LLVM_PACKAGES))?;
    run::step(&format!("building bpf-linker {BPF_LINKER_VERSION} into {}", cache.display()), || {
        let mut cargo = run::cargo();
        for variable in OUTER {
            cargo.env_remove(variable);
        }
        cargo
            .env("LLVM_PREFIX", LLVM_PREFIX)
            .args(["install", "bpf-linker", "--quiet", "--locked", "--version", BPF_LINKER_VERSION])
            .args(["--no-default-features", "--features", "llvm-22", "--root"])
            .arg(&cache);
        run::output(&mut cargo).map(drop)
    })?;
    let linker = cache.join("bin/bpf-linker");
    if !links_with_llvm_of_debian(&linker) {
        bail!("{} does not run", linker.display());
    }
    Ok(linker)
}

/// Whether it runs, and so finds its LLVM; it must be as new as the compiler's.
fn links_with_llvm_of_debian(linker: &Path) -> bool {
    linker.is_file()
        && run::output(Command::new(linker).arg("--version"))
            .is_ok_and(|said| said.contains(BPF_LINKER_VERSION))
}

fn missing(packages: &[&'static str]) -> Vec<&'static str> {
    packages.iter().copied().filter(|package| !is_installed(package)).collect()
}

fn is_installed(package: &str) -> bool {
    let mut query = Command::new("dpkg-query");
    query.args(["--show", "--showformat", "${db:Status-Status}", package]);
    run::output(&mut query).is_ok_and(|status| status.trim() == "installed")
}

/// The hash over names and contents of all sources under `folder`.
fn hash_of(folder: &Path) -> Result<String> {
    let mut files = Vec::new();
    collect_files(folder, &mut files)?;
    files.sort();
    let mut hash = Sha256::new();
    for file in files {
        let bytes = fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
        let name = file.strip_prefix(folder).unwrap_or(&file);
        hash.update(format!("{} {}\n", name.display(), bytes.len()));
        hash.update(&bytes);
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn collect_files(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))? {
        let path = entry?.path();
        let built = path.file_name().is_some_and(|name| name == "target");
        if path.is_dir() && !built {
            collect_files(&path, files)?;
        } else if path.is_file() {
            files.push(path);
        }
    }
    Ok(())
}

/// Writes beside the file and renames: a reader sees the old contents or the new.
fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = path.parent().context("a file has a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    let fresh = path.with_extension(format!("new.{}", std::process::id()));
    fs::write(&fresh, bytes).with_context(|| format!("writing {}", fresh.display()))?;
    fs::rename(&fresh, path).with_context(|| format!("renaming to {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_follows_names_and_contents_and_ignores_what_was_built() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::create_dir_all(folder.path().join("src")).expect("src");
        fs::write(folder.path().join("src/main.rs"), "fn main() {}").expect("main.rs");
        let first = hash_of(folder.path()).expect("a hash");
        fs::create_dir_all(folder.path().join("target")).expect("target");
        fs::write(folder.path().join("target/object"), "built").expect("object");
        assert_eq!(hash_of(folder.path()).expect("a hash"), first);
        fs::write(folder.path().join("src/main.rs"), "fn main() { }").expect("main.rs");
        let second = hash_of(folder.path()).expect("a hash");
        assert_ne!(second, first);
        fs::rename(folder.path().join("src/main.rs"), folder.path().join("src/other.rs")).expect("a rename");
        assert_ne!(hash_of(folder.path()).expect("a hash"), second);
    }

    #[test]
    fn a_replaced_file_has_the_new_contents_and_nothing_is_left_beside_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("bpf/seaway.o");
        for bytes in [b"one".as_slice(), b"two"] {
            replace(&path, bytes).expect("replacing");
            assert_eq!(fs::read(&path).expect("the file"), bytes);
        }
        assert_eq!(fs::read_dir(folder.path().join("bpf")).expect("the folder").count(), 1);
    }
}
