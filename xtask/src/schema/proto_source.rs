//! Reads the sources of k8s-pb, which were made from the published protobuf files: the tag of each field, and the marker
//! comments (`+listType=map`, `+patchMergeKey=name`, `+default=…`) that Kubernetes' own generators read.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result, ensure};
use regex::Regex;

/// Names as they are compared: k8s-pb and k8s-openapi spell acronyms and word boundaries differently.
pub fn fold(name: &str) -> String {
    name.trim_start_matches("r#").chars().filter(|c| *c != '_').flat_map(char::to_lowercase).collect()
}

/// One protobuf message.
#[derive(Debug, Default)]
pub struct Message {
    pub markers: Vec<(String, String)>,
    pub comment: String,
    /// By folded name.
    pub fields: BTreeMap<String, ProtoField>,
}

#[derive(Clone, Debug, Default)]
pub struct ProtoField {
    pub tag: u32,
    /// Such as `("listType", "map")`, in order.
    pub markers: Vec<(String, String)>,
    pub comment: String,
    /// The last part of the Rust type's path: the message's name where it is one.
    pub message: String,
}

impl ProtoField {
    /// The values of a marker.
    pub fn marker<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.markers.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// All messages, by package (`api.core.v1`) and folded name.
pub struct Messages {
    by_name: BTreeMap<(String, String), Message>,
}

impl Messages {
    /// Reads every module below `folder` (`k8s-pb`'s `src`).
    pub fn read(folder: &Path) -> Result<Self> {
        let mut messages = Self { by_name: BTreeMap::new() };
        messages.visit(folder, "")?;
        ensure!(messages.by_name.len() > 500, "{} holds only few messages", folder.display());
        Ok(messages)
    }

    fn visit(&mut self, folder: &Path, package: &str) -> Result<()> {
        for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
            let path = entry?.path();
            let name =
                path.file_name().and_then(|name| name.to_str()).context("a file name that is not UTF-8")?;
            if path.is_dir() {
                let separator = if package.is_empty() { "" } else { "." };
                self.visit(&path, &format!("{package}{separator}{name}"))?;
            } else if name == "mod.rs" {
                let text =
                    fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
                self.read_module(package, &text);
            }
        }
        Ok(())
    }

    fn read_module(&mut self, package: &str, text: &str) {
        let tag_pattern = Regex::new(r#"tag ?= ?"(\d+)""#).expect("constant");
        let mut docs: Vec<&str> = Vec::new();
        let mut current: Option<(String, Message)> = None;
        let mut tag = 0;
        for line in text.lines() {
            let trimmed = line.trim();
            if let Some(doc) = trimmed.strip_prefix("///") {
                docs.push(doc.trim());
            } else if let Some(captures) = tag_pattern.captures(trimmed) {
                tag = captures[1].parse().unwrap_or(0);
            } else if let Some(rest) = trimmed.strip_prefix("pub struct ") {
                let name = rest.split([' ', '{', ';']).next().unwrap_or("");
                let (markers, comment) = split_docs(&docs);
                current = Some((fold(name), Message { markers, comment, fields: BTreeMap::new() }));
                docs.clear();
            } else if trimmed == "}" {
                if let Some((name, message)) = current.take() {
                    self.by_name.insert((package.to_owned(), name), message);
                }
            } else if let (Some(rest), Some((_, message))) = (trimmed.strip_prefix("pub "), current.as_mut())
            {
                let Some((name, rust_type)) = rest.split_once(':') else { continue };
                let (markers, comment) = split_docs(&docs);
                let last = rust_type.rsplit("::").next().unwrap_or("");
                let last = last.rsplit('<').next().unwrap_or("").trim_end_matches(['>', ',']);
                let field = ProtoField { tag, markers, comment, message: fold(last) };
                message.fields.insert(fold(name), field);
                docs.clear();
            } else if trimmed.is_empty() {
                docs.clear();
            }
        }
    }

    /// The message of an OpenAPI definition such as `io.k8s.api.core.v1.Pod`.
    pub fn of_definition(&self, definition: &str) -> Option<&Message> {
        let (package, name) = definition.strip_prefix("io.k8s.")?.rsplit_once('.')?;
        self.by_name.get(&(package.replace('-', "_"), fold(name)))
    }

    /// A message that a field of `definition` is made of: in the same package, or in one of the two shared ones.
    pub fn beside(&self, definition: &str, folded: &str) -> Option<&Message> {
        let package = definition.strip_prefix("io.k8s.")?.rsplit_once('.')?.0.replace('-', "_");
        [package.as_str(), "api.core.v1", "apimachinery.pkg.apis.meta.v1"]
            .into_iter()
            .find_map(|package| self.by_name.get(&(package.to_owned(), folded.to_owned())))
    }
}

/// Separates `+marker=value` lines from prose; prose lines of a paragraph are joined.
fn split_docs(docs: &[&str]) -> (Vec<(String, String)>, String) {
    let mut markers = Vec::new();
    let mut paragraphs: Vec<String> = vec![String::new()];
    for line in docs {
        if let Some(marker) = line.strip_prefix('+') {
            let (key, value) = marker.split_once('=').unwrap_or((marker, ""));
            // prost wraps addresses in angle brackets and escapes some characters.
            markers.push((key.trim_start_matches("k8s:").to_owned(), value.replace('\\', "")));
        } else if line.is_empty() {
            paragraphs.push(String::new());
        } else if let Some(paragraph) = paragraphs.last_mut() {
            let space = if paragraph.is_empty() { "" } else { " " };
            paragraph.push_str(space);
            paragraph.push_str(line);
        }
    }
    paragraphs.retain(|paragraph| !paragraph.is_empty());
    let comment = paragraphs.join("\n\n").replace("<http", "http").replace('>', "");
    (markers, comment)
}
