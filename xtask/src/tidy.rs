//! What README.md claims about the architecture, enforced: crate edges, pure crates, sizes, names.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::run;

const FILE_LINES_MAX: usize = 800;
const FUNCTION_LINES_MAX: usize = 70;

/// Which of our crates each of our crates may depend on. A missing edge here is a decision; a new one is, too.
const EDGES: &[(&str, &[&str])] = &[
    ("ebpf-common", &[]),
    ("bgp", &[]),
    ("bfd", &[]),
    ("ipam", &[]),
    ("api", &[]),
    ("calico", &[]),
    ("cel", &["api"]),
    ("resident", &[]),
    ("cni", &[]),
    ("proxy", &["ebpf-common"]),
    ("policy", &["ebpf-common"]),
    ("dataplane", &["ebpf-common"]),
    ("kubelet", &[]),
    ("dns", &[]),
    ("cli", &[]),
    (
        "agent",
        &[
            "bgp",
            "bfd",
            "ipam",
            "proxy",
            "policy",
            "dataplane",
            "kubelet",
            "dns",
            "cni",
            "ebpf-common",
            "calico",
            "resident",
        ],
    ),
    ("apiserver", &["api", "calico", "cel"]),
    ("scheduler", &["api"]),
    ("controllers", &["cel", "api", "calico", "ipam", "scheduler"]),
    ("control-plane", &["apiserver", "scheduler", "controllers", "api", "resident"]),
    ("xtask", &[]),
    ("protoc", &[]),
    ("images", &[]),
    ("harness", &[]),
    ("fuzz", &["api", "bfd", "bgp", "cel", "cni"]),
    ("bench", &["bgp", "ipam", "dataplane", "ebpf-common", "proxy"]),
];

/// Crates of decisions: no runtime, no kernel, no clock.
const PURE: &[&str] = &["ebpf-common", "bgp", "bfd", "ipam", "proxy", "policy", "api", "calico", "cel"];
const IMPURE_DEPENDENCIES: &[&str] = &["tokio", "rtnetlink", "nix", "kube", "hyper"];
/// Calls that read a clock, which pure crates take as an argument.
const CLOCKS: &[&str] = &["Instant::now()", "SystemTime::now()", "Timestamp::now()"];

/// Fails with every finding, not with the first.
pub(crate) fn tidy() -> Result<()> {
    let mut findings = Vec::new();
    let packages = packages()?;
    edges(&packages, &mut findings);
    readme(&packages, &mut findings)?;
    for file in sources()? {
        let text = std::fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        sizes(&file, &text, &mut findings);
        words(&file, &text, &mut findings);
    }
    if findings.is_empty() {
        return Ok(());
    }
    bail!("{} findings:\n    {}", findings.len(), findings.join("\n    "))
}

struct Package {
    name: String,
    folder: PathBuf,
    /// Ordinary dependencies, by name.
    dependencies: Vec<String>,
}

fn packages() -> Result<Vec<Package>> {
    let text =
        run::output(run::cargo().args(["metadata", "--format-version", "1", "--no-deps", "--locked"]))?;
    let metadata: Value = serde_json::from_str(&text).context("parsing cargo metadata")?;
    let packages = metadata["packages"].as_array().context("cargo metadata names no packages")?;
    packages
        .iter()
        .map(|package| {
            let dependencies = package["dependencies"].as_array().map(Vec::as_slice).unwrap_or_default();
            Ok(Package {
                name: package["name"].as_str().context("a package without a name")?.to_owned(),
                folder: Path::new(package["manifest_path"].as_str().context("a package without a path")?)
                    .parent()
                    .context("a manifest without a folder")?
                    .to_owned(),
                dependencies: dependencies
                    .iter()
                    .filter(|dependency| dependency["kind"].is_null())
                    .filter_map(|dependency| dependency["name"].as_str().map(str::to_owned))
                    .collect(),
            })
        })
        .collect()
}

fn edges(packages: &[Package], findings: &mut Vec<String>) {
    let allowed: BTreeMap<&str, &[&str]> = EDGES.iter().copied().collect();
    for package in packages.iter().filter(|package| package.name != "tests") {
        let Some(allowed) = allowed.get(package.name.as_str()) else {
            findings.push(format!("crate {} is not in the table of crate edges of tidy.rs", package.name));
            continue;
        };
        for dependency in &package.dependencies {
            let ours = packages.iter().any(|other| &other.name == dependency);
            if ours && !allowed.contains(&dependency.as_str()) {
                findings.push(format!("crate {} must not depend on {dependency}", package.name));
            }
            if PURE.contains(&package.name.as_str()) && IMPURE_DEPENDENCIES.contains(&dependency.as_str()) {
                findings.push(format!("crate {} is pure and must not depend on {dependency}", package.name));
            }
        }
        if PURE.contains(&package.name.as_str()) {
            clocks(package, findings);
        }
    }
}

fn clocks(package: &Package, findings: &mut Vec<String>) {
    // A test's virtual clock has to begin somewhere.
    let files =
        rust_files(&package.folder.join("src")).into_iter().filter(|file| !file.ends_with("tests.rs"));
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        for clock in CLOCKS.iter().filter(|clock| text.contains(**clock)) {
            findings.push(format!("{}: {clock} in a pure crate: take `now` as an argument", shown(&file)));
        }
    }
}

fn readme(packages: &[Package], findings: &mut Vec<String>) -> Result<()> {
    let text = std::fs::read_to_string(run::root().join("README.md")).context("reading README.md")?;
    let missing = packages.iter().filter(|package| !text.contains(&format!("`{}`", package.name)));
    findings.extend(missing.map(|package| format!("README.md does not name the crate `{}`", package.name)));
    Ok(())
}

/// Rust files under version control, or about to be.
fn sources() -> Result<Vec<PathBuf>> {
    let listed = run::output(Command::new("git").current_dir(run::root()).args([
        "ls-files",
        "--cached",
        "--others",
        "--exclude-standard",
        "*.rs",
    ]))?;
    Ok(listed.lines().map(|line| run::root().join(line)).filter(|path| path.exists()).collect())
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    entries
        .flatten()
        .flat_map(|entry| {
            let path = entry.path();
            if path.is_dir() { rust_files(&path) } else { vec![path] }
        })
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .collect()
}

fn shown(file: &Path) -> String {
    file.strip_prefix(run::root()).unwrap_or(file).display().to_string()
}

fn sizes(file: &Path, text: &str, findings: &mut Vec<String>) {
    let lines = text.lines().count();
    if lines > FILE_LINES_MAX {
        findings.push(format!("{}: {lines} lines, the limit is {FILE_LINES_MAX}", shown(file)));
    }
    for (line, name, length) in functions(text) {
        if length > FUNCTION_LINES_MAX {
            findings.push(format!(
                "{}:{line}: fn {name} has {length} lines, the limit is {FUNCTION_LINES_MAX}",
                shown(file)
            ));
        }
    }
}

/// Functions of a file that rustfmt has laid out: first line, name, length. A function ends at the first line that is
/// a closing brace at the indentation of its `fn`.
fn functions(text: &str) -> Vec<(usize, String, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let indentation = line.len() - line.trim_start().len();
        let words: Vec<&str> = line.split_whitespace().take(8).collect();
        let Some(position) = words.iter().position(|word| *word == "fn") else { continue };
        let modifier = |word: &&str| {
            word.starts_with("pub")
                || ["async", "const", "unsafe", "extern", "default", "\"C\""].contains(word)
        };
        if !words[..position].iter().all(modifier) || line.trim_end().ends_with(';') {
            continue;
        }
        let name =
            words.get(position + 1).map_or("", |word| word.split(['(', '<']).next().unwrap_or_default());
        let closing = format!("{}}}", " ".repeat(indentation));
        if let Some(length) = lines[index..].iter().position(|line| *line == closing) {
            found.push((index + 1, name.to_owned(), length + 1));
        }
    }
    found
}

/// The rules of writing that a compiler does not know.
fn words(file: &Path, text: &str, findings: &mut Vec<String>) {
    if file.ends_with("xtask/src/tidy.rs") {
        return;
    }
    for (index, line) in text.lines().enumerate() {
        if line.contains("#[allow(") || line.contains("#![allow(") {
            findings.push(format!(
                "{}:{}: #[allow]: use #[expect(lint, reason = \"...\")]",
                shown(file),
                index + 1
            ));
        }
        if line.contains("#[ignore") {
            findings.push(format!("{}:{}: a test that does not run", shown(file), index + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::functions;

    #[test]
    fn functions_are_measured_from_fn_to_the_closing_brace() {
        let text = "pub async fn one() {\n    two();\n}\n\nimpl A {\n    fn three(\n        &self,\n    ) {\n    }\n}\n";
        let found = functions(text);
        assert_eq!(found, [(1, "one".to_owned(), 3), (6, "three".to_owned(), 4)]);
    }
}
