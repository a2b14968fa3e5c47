//! Reads the generated sources of k8s-openapi: the `json_schema!` body of each type is the published OpenAPI definition
//! with `subschema_for::<Path>()` in place of `$ref`; beside it stand the group, version, kind and merge strategies.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result, bail, ensure};
use regex::Regex;
use serde_json::{Map, Value, json};

/// How k8s-openapi merges a list: what is left of the published `x-kubernetes-list-*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListMerge {
    Atomic,
    Set,
    /// With the JSON name of the key.
    Map(String),
}

/// One type as k8s-openapi has it.
#[derive(Debug)]
pub struct RustType {
    /// The name of the OpenAPI definition, such as `io.k8s.api.core.v1.Pod`.
    pub name: String,
    /// The body; `$ref` holds the definition's name.
    pub schema: Value,
    /// By JSON name.
    pub list_merge: BTreeMap<String, ListMerge>,
    pub resource: Option<Resource>,
}

#[derive(Debug)]
pub struct Resource {
    pub group: String,
    pub version: String,
    pub kind: String,
    pub list_kind: Option<String>,
}

/// Reads every type below `folder`.
pub fn read(folder: &Path) -> Result<Vec<RustType>> {
    let mut types = Vec::new();
    visit(folder, &mut types)?;
    types.sort_by(|a, b| a.name.cmp(&b.name));
    ensure!(types.len() > 500, "{} holds only {} types", folder.display(), types.len());
    Ok(types)
}

fn visit(folder: &Path, types: &mut Vec<RustType>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            visit(&path, types)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
            if let Some(found) = read_type(&text).with_context(|| format!("in {}", path.display()))? {
                types.push(found);
            }
        }
    }
    Ok(())
}

fn capture(text: &str, pattern: &str) -> Option<String> {
    let pattern = Regex::new(pattern).expect("the patterns of this file are constants that compile");
    pattern.captures(text).map(|captures| captures[1].to_owned())
}

fn read_type(text: &str) -> Result<Option<RustType>> {
    let Some(name) = capture(text, r#"fn schema_name\(\)[^{]*\{\s*"(io\.k8s\.[^"]+)"\.into\(\)"#) else {
        return Ok(None);
    };
    let (_, body) = text.split_once("json_schema!(").context("no json_schema! body")?;
    let schema = Reader { text: body, at: 0 }.value().context("reading the json_schema! body")?;
    let constant = |which: &str| capture(text, &format!(r#"const {which}: &'static str = "([^"]*)";"#));
    let resource = match (constant("GROUP"), constant("VERSION"), constant("KIND")) {
        (Some(group), Some(version), Some(kind)) => {
            Some(Resource { group, version, kind, list_kind: constant("LIST_KIND") })
        }
        _ => None,
    };
    Ok(Some(RustType { name, schema, list_merge: list_merges(text), resource }))
}

fn list_merges(text: &str) -> BTreeMap<String, ListMerge> {
    let keys = Regex::new(r#""([^"]+)" => Field::Key_(\w+),"#).expect("constant");
    let json_names: BTreeMap<&str, &str> = keys
        .captures_iter(text)
        .map(|captures| {
            let (_, [json, rust]) = captures.extract();
            (rust, json)
        })
        .collect();
    let merge = Regex::new(r"merge_strategies::list::(\w+)\(\s*&mut self\.(\w+),([^;]*);").expect("constant");
    let key = Regex::new(r"lhs\.(\w+) == rhs\.").expect("constant");
    let mut merges = BTreeMap::new();
    for captures in merge.captures_iter(text) {
        let (_, [strategy, field, rest]) = captures.extract();
        let Some(json) = json_names.get(field) else { continue };
        let merge = match (strategy, key.captures(rest)) {
            ("atomic", _) => ListMerge::Atomic,
            ("set", _) => ListMerge::Set,
            // The keys are fields of another type: their JSON names follow the same rule.
            (_, Some(found)) => ListMerge::Map(camel_case(&found[1])),
            _ => continue,
        };
        merges.insert((*json).to_owned(), merge);
    }
    merges
}

fn camel_case(snake: &str) -> String {
    let mut out = String::new();
    let mut upper = false;
    for c in snake.trim_end_matches('_').chars() {
        match c {
            '_' => upper = true,
            c if upper => {
                out.extend(c.to_uppercase());
                upper = false;
            }
            c => out.push(c),
        }
    }
    out
}

/// `crate::api::core::v1::Pod` is `io.k8s.api.core.v1.Pod`.
fn definition_name(path: &str) -> String {
    let path = path.trim().trim_start_matches("crate::").replace("::", ".");
    let path = path.replace("apiextensions_apiserver.", "apiextensions-apiserver.");
    format!("io.k8s.{}", path.replace("kube_aggregator.", "kube-aggregator."))
}

/// Reads the macro's notation: JSON with trailing commas and Rust expressions in parentheses.
struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Reader<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn skip_space(&mut self) {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start().len();
    }

    fn eat(&mut self, token: &str) -> bool {
        self.skip_space();
        let found = self.rest().starts_with(token);
        if found {
            self.at += token.len();
        }
        found
    }

    fn expect(&mut self, token: &str) -> Result<()> {
        ensure!(
            self.eat(token),
            "expected {token:?} before {:?}",
            self.rest().chars().take(40).collect::<String>()
        );
        Ok(())
    }

    fn until(&mut self, end: &str) -> Result<&'a str> {
        let length = self.rest().find(end).with_context(|| format!("no {end:?}"))?;
        let found = &self.rest()[..length];
        self.at += length + end.len();
        Ok(found)
    }

    fn value(&mut self) -> Result<Value> {
        self.skip_space();
        match self.rest().as_bytes().first() {
            Some(b'{') => self.object(),
            Some(b'[') => self.array(),
            Some(b'"') => Ok(Value::from(self.string()?)),
            Some(b'(' | b'_') => self.expression(),
            Some(_) if self.eat("true") => Ok(Value::Bool(true)),
            Some(_) if self.eat("false") => Ok(Value::Bool(false)),
            _ => bail!("no value at {:?}", self.rest().chars().take(40).collect::<String>()),
        }
    }

    fn object(&mut self) -> Result<Value> {
        self.expect("{")?;
        let mut object = Map::new();
        while !self.eat("}") {
            let key = self.string()?;
            self.expect(":")?;
            object.insert(key, self.value()?);
            self.eat(",");
        }
        Ok(Value::Object(object))
    }

    fn array(&mut self) -> Result<Value> {
        self.expect("[")?;
        let mut items = Vec::new();
        while !self.eat("]") {
            items.push(self.value()?);
            self.eat(",");
        }
        Ok(Value::Array(items))
    }

    /// `__gen.subschema_for::<PATH>()`, or the block that adds a description to it; often in parentheses.
    fn expression(&mut self) -> Result<Value> {
        let parenthesis = self.eat("(");
        let block = self.eat("{");
        if block {
            self.expect("let mut schema_obj =")?;
        }
        self.expect("__gen.subschema_for::<")?;
        let path = self.until(">()")?;
        let mut schema = json!({"$ref": definition_name(path)});
        if block {
            self.expect(";")?;
            self.expect("schema_obj.ensure_object().insert(\"description\".into(),")?;
            schema["description"] = Value::from(self.string()?);
            self.expect(".into());")?;
            self.expect("schema_obj")?;
            self.expect("}")?;
        }
        if parenthesis {
            self.expect(")")?;
        }
        Ok(schema)
    }

    fn string(&mut self) -> Result<String> {
        self.expect("\"")?;
        let mut out = String::new();
        let mut chars = self.rest().char_indices();
        while let Some((i, c)) = chars.next() {
            match c {
                '"' => {
                    self.at += i + 1;
                    return Ok(out);
                }
                '\\' => match chars.next().map(|(_, c)| c) {
                    Some('n') => out.push('\n'),
                    Some('t') => out.push('\t'),
                    Some('r') => out.push('\r'),
                    Some('0') => out.push('\0'),
                    Some(c @ ('"' | '\\' | '\'')) => out.push(c),
                    Some('u') => {
                        let hex: String =
                            chars.by_ref().map(|(_, c)| c).skip(1).take_while(|c| *c != '}').collect();
                        let code = u32::from_str_radix(&hex, 16).context("a \\u escape")?;
                        out.push(char::from_u32(code).context("a \\u escape")?);
                    }
                    other => bail!("escape {other:?} is not known"),
                },
                c => out.push(c),
            }
        }
        bail!("a string without end")
    }
}
