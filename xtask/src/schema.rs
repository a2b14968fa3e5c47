//! `cargo xtask schema`: derives the API server's table of types from the sources of k8s-openapi (fields, types,
//! descriptions, what is required) and k8s-pb (protobuf tags, list types and keys, patch keys, defaults).
//!
//! What only Go's types say (pointers, tags of newer fields) is in `schema/go_fields.txt`.
//!
//! Writes `control-plane/api/schema/types.txt`, one line per type and field, and `descriptions.z` (zlib), one line for
//! each of those. `--check` compares instead. Only the stable API is kept. Both sources are Apache-2.0.

mod go_fields;
mod proto_source;
mod rust_source;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{Read, Write},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};
use go_fields::GoFields;
use proto_source::{Message, Messages, ProtoField, fold};
use rust_source::{ListMerge, RustType};
use serde_json::Value;

const API_LEVEL: &str = "v1_36";
const FOLDER: &str = "control-plane/api/schema";
const METADATA_TYPES: [&str; 2] =
    ["io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta", "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta"];
/// The only stable type that requires `metadata`; k8s-openapi says it of every kind.
const METADATA_REQUIRED: &str = "io.k8s.api.core.v1.Event";
/// What is published as required and k8s-openapi makes optional.
const REQUIRED_TOO: [(&str, &str); 1] = [("io.k8s.api.events.v1.Event", "eventTime")];

/// Writes the table, or with `check` fails if what is committed differs.
///
/// # Errors
/// When a source is missing or is not understood, or the committed table is old.
pub fn run(check: bool) -> Result<()> {
    let (workspace, openapi, protobuf) = locate()?;
    let types = rust_source::read(&openapi.join("src").join(API_LEVEL))?;
    let messages = Messages::read(&protobuf.join("src"))?;
    let (table, descriptions) = Table::new(&types, &messages).write()?;
    let folder = workspace.join(FOLDER);
    let (table_path, descriptions_path) = (folder.join("types.txt"), folder.join("descriptions.z"));
    if check {
        let committed = fs::read_to_string(&table_path).unwrap_or_default();
        let committed_descriptions = inflate(&fs::read(&descriptions_path).unwrap_or_default())?;
        ensure!(
            committed == table && committed_descriptions == descriptions,
            "{FOLDER} is not what the sources say: run `cargo xtask schema` and commit the result"
        );
        println!("{FOLDER} is what the sources say");
        return Ok(());
    }
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    fs::write(&table_path, &table).with_context(|| format!("writing {}", table_path.display()))?;
    let packed = deflate(&descriptions)?;
    fs::write(&descriptions_path, &packed)
        .with_context(|| format!("writing {}", descriptions_path.display()))?;
    println!("{}: {} bytes, {} lines", table_path.display(), table.len(), table.lines().count());
    println!("{}: {} bytes, {} unpacked", descriptions_path.display(), packed.len(), descriptions.len());
    Ok(())
}

/// The workspace root and the folders of the two source crates, which cargo downloads if need be.
fn locate() -> Result<(PathBuf, PathBuf, PathBuf)> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--all-features", "--locked"])
        .output()
        .context("running cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    }
    let metadata: Value = serde_json::from_slice(&output.stdout).context("reading cargo metadata")?;
    let package = |name: &str| -> Result<PathBuf> {
        let packages = metadata["packages"].as_array().into_iter().flatten();
        let manifest = packages
            .filter(|package| package["name"] == name)
            .find_map(|package| package["manifest_path"].as_str())
            .with_context(|| format!("{name} is not among the dependencies"))?;
        Ok(Path::new(manifest).parent().context("a manifest without a folder")?.to_owned())
    };
    let root = metadata["workspace_root"].as_str().context("no workspace_root")?;
    Ok((PathBuf::from(root), package("k8s-openapi")?, package("k8s-pb")?))
}

fn deflate(text: &str) -> Result<Vec<u8>> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(text.as_bytes()).context("compressing the descriptions")?;
    encoder.finish().context("compressing the descriptions")
}

fn inflate(packed: &[u8]) -> Result<String> {
    let mut text = String::new();
    if !packed.is_empty() {
        flate2::read::ZlibDecoder::new(packed)
            .read_to_string(&mut text)
            .context("unpacking the descriptions")?;
    }
    Ok(text)
}

struct Table<'a> {
    types: &'a [RustType],
    messages: &'a Messages,
    go: GoFields,
    names: BTreeSet<&'a str>,
    lines: String,
    descriptions: String,
}

impl<'a> Table<'a> {
    fn new(types: &'a [RustType], messages: &'a Messages) -> Self {
        let names = types.iter().map(|found| found.name.as_str()).collect();
        let lines = format!(
            "# Written by `cargo xtask schema` from k8s-openapi ({API_LEVEL}) and k8s-pb; not to be edited.\n\
             # Derived from Kubernetes, copyright The Kubernetes Authors, Apache-2.0.\n\
             # T name attributes / tab field tags type attributes; names without their io.k8s. prefix.\n"
        );
        Self { types, messages, go: GoFields::read(), names, lines, descriptions: String::new() }
    }

    fn write(mut self) -> Result<(String, String)> {
        let mut written: BTreeMap<&str, &RustType> = BTreeMap::new();
        for found in self.types.iter().filter(|found| is_stable(&found.name)) {
            written.insert(&found.name, found);
        }
        for (name, found) in written {
            self.type_lines(found).with_context(|| format!("type {name}"))?;
            if let Some(resource) = found.resource.as_ref().filter(|resource| resource.list_kind.is_some()) {
                self.list_lines(found, resource);
            }
        }
        self.go.check_used()?;
        Ok((self.lines, self.descriptions))
    }

    fn describe(&mut self, text: &str) {
        self.descriptions.push_str(&text.replace('\\', "\\\\").replace('\n', "\\n").replace('\r', ""));
        self.descriptions.push('\n');
    }

    fn type_lines(&mut self, found: &RustType) -> Result<()> {
        let message = self.messages.of_definition(&found.name);
        let mut line = format!("T {}", short(&found.name));
        if let Some(resource) = &found.resource {
            line.push_str(&format!("\tgvk={}/{}/{}", resource.group, resource.version, resource.kind));
        }
        let leaf = leaf(&found.name);
        if let Some(leaf) = leaf {
            line.push_str(&format!("\tleaf={leaf}"));
        }
        if message
            .is_some_and(|message| message.markers.iter().any(|(k, v)| k == "structType" && v == "atomic"))
        {
            line.push_str("\tatomic");
        }
        self.lines.push_str(&line);
        self.lines.push('\n');
        self.describe(found.schema["description"].as_str().unwrap_or(""));
        if leaf.is_some() {
            return Ok(());
        }
        let required: BTreeSet<&str> =
            found.schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let properties = found.schema["properties"].as_object();
        for (name, schema) in properties.into_iter().flatten() {
            let mut attributes =
                self.attributes(found, message, name).with_context(|| format!("field {name}"))?;
            let added = name == "metadata"
                && found.name != METADATA_REQUIRED
                && METADATA_TYPES.iter().any(|metadata| schema["$ref"] == *metadata);
            let named = required.contains(name.as_str()) && !added;
            // A field with a default may be left out.
            let required = named && !attributes.contains("\tdefault=");
            if required || REQUIRED_TOO.contains(&(&found.name, name)) {
                attributes.push_str("\trequired");
            }
            let go = self.go.take(short(&found.name), name);
            if go.is_pointer {
                attributes.push_str("\tpointer");
            }
            if go.shows_zero {
                attributes.push_str("\tzero");
            }
            if go.is_wrapped {
                attributes.push_str("\twrapped");
            }
            let tags = match (self.field(found, message, name), go.tags) {
                (Some((tags, _)), None) => tags,
                (None, Some(tags)) => tags.to_owned(),
                (None, None) => "-".to_owned(),
                (Some(_), Some(_)) => bail!("field {name}: k8s-pb knows its tag, go_fields.txt need not"),
            };
            let shape = self.shape(schema).with_context(|| format!("field {name}"))?;
            self.lines.push_str(&format!("\t{name}\t{tags}\t{shape}{attributes}\n"));
            self.describe(schema["description"].as_str().unwrap_or(""));
        }
        Ok(())
    }

    /// `PodList` and its like, which k8s-openapi has as one generic type.
    fn list_lines(&mut self, item: &RustType, resource: &rust_source::Resource) {
        let name = format!("{}List", item.name);
        let message = self.messages.of_definition(&name);
        let comment = |field: &str| {
            let found = message.and_then(|message| message.fields.get(field));
            found.map_or_else(String::new, |field| field.comment.clone())
        };
        let description = message.map_or_else(String::new, |message| message.comment.clone());
        let items = match comment("items") {
            text if text.is_empty() => format!("items is the list of {}.", resource.kind),
            text => text,
        };
        self.lines.push_str(&format!(
            "T {}\tgvk={}/{}/{}List\n\tapiVersion\t-\tstring\n\titems\t2\t[]@{}\trequired\n\tkind\t-\tstring\n\
             \tmetadata\t1\t@apimachinery.pkg.apis.meta.v1.ListMeta\n",
            short(&name),
            resource.group,
            resource.version,
            resource.kind,
            short(&item.name)
        ));
        let of =
            |field: &str| item.schema["properties"][field]["description"].as_str().unwrap_or("").to_owned();
        let (api_version, kind) = (of("apiVersion"), of("kind"));
        for text in [description, api_version, items, kind, comment("metadata")] {
            self.describe(&text);
        }
    }

    /// The protobuf field of a JSON field with its path of tags: more than one where Go embeds a struct.
    fn field(
        &self,
        found: &RustType,
        message: Option<&'a Message>,
        name: &str,
    ) -> Option<(String, &'a ProtoField)> {
        let message = message?;
        if let Some(field) = message.fields.get(&fold(name)) {
            return Some((field.tag.to_string(), field));
        }
        let properties = found.schema["properties"].as_object()?;
        let known: BTreeSet<String> = properties.keys().map(|name| fold(name)).collect();
        message.fields.iter().filter(|(embedded, _)| !known.contains(*embedded)).find_map(|(_, embedded)| {
            let inner = self.messages.beside(&found.name, &embedded.message)?;
            let (tags, field) = self.field(found, Some(inner), name)?;
            Some((format!("{}/{tags}", embedded.tag), field))
        })
    }

    fn attributes(&self, found: &RustType, message: Option<&'a Message>, name: &str) -> Result<String> {
        let mut out = String::new();
        let Some((_, field)) = self.field(found, message, name) else {
            match found.list_merge.get(name) {
                Some(ListMerge::Map(key)) => out.push_str(&format!("\tlist=map:{key}\tpatch=merge:{key}")),
                Some(ListMerge::Set) => out.push_str("\tlist=set"),
                Some(ListMerge::Atomic) => out.push_str("\tlist=atomic"),
                None => {}
            }
            return Ok(out);
        };
        if let Some(list) = field.marker("listType").next() {
            out.push_str(&format!("\tlist={list}"));
            let mut keys: Vec<&str> = field.marker("listMapKey").collect();
            keys = keys
                .iter()
                .enumerate()
                .filter(|(i, key)| !keys[..*i].contains(key))
                .map(|(_, key)| *key)
                .collect();
            if list == "map" {
                ensure!(!keys.is_empty(), "a list map without keys");
                out.push_str(&format!(":{}", keys.join(",")));
            }
        }
        let map = field.marker("mapType").next().or_else(|| field.marker("structType").next());
        if let Some(map) = map {
            out.push_str(&format!("\tmap={map}"));
        }
        if let Some(strategy) = field.marker("patchStrategy").next() {
            out.push_str(&format!("\tpatch={strategy}"));
            if let Some(key) = field.marker("patchMergeKey").next() {
                out.push_str(&format!(":{key}"));
            }
        }
        if let Some(default) = field.marker("default").next() {
            let default = match default {
                "ref(AzureSharedBlobDisk)" => "\"Shared\"",
                "ref(AzureDataDiskCachingReadWrite)" => "\"ReadWrite\"",
                default => default,
            };
            let _checked: Value = serde_json::from_str(default)
                .with_context(|| format!("the default {default:?} is not JSON"))?;
            out.push_str(&format!("\tdefault={default}"));
        }
        Ok(out)
    }

    fn shape(&self, schema: &Value) -> Result<String> {
        if let Some(name) = schema["$ref"].as_str() {
            ensure!(self.names.contains(name), "{name} is not a type");
            return Ok(format!("@{}", short(name)));
        }
        let format = schema["format"].as_str().unwrap_or("");
        Ok(match (schema["type"].as_str(), format) {
            (Some("array"), _) => format!("[]{}", self.shape(&schema["items"])?),
            (Some("object"), _) if schema["additionalProperties"].is_object() => {
                format!("{{}}{}", self.shape(&schema["additionalProperties"])?)
            }
            (Some("object"), _) => "object".to_owned(),
            (Some("string"), "byte") => "byte".to_owned(),
            (Some("string"), "") => "string".to_owned(),
            (Some("boolean"), _) => "boolean".to_owned(),
            (Some("integer"), "int32") => "int32".to_owned(),
            (Some("integer"), _) => "int64".to_owned(),
            (Some("number"), _) => "double".to_owned(),
            _ => bail!("no shape for {schema}"),
        })
    }
}

fn short(name: &str) -> &str {
    name.trim_start_matches("io.k8s.")
}

fn is_stable(name: &str) -> bool {
    !name.split('.').any(|part| {
        part.starts_with('v')
            && part[1..].starts_with(|c: char| c.is_ascii_digit())
            && (part.contains("alpha") || part.contains("beta"))
    })
}

/// Named types whose JSON form is not an object with known fields.
fn leaf(name: &str) -> Option<&'static str> {
    Some(match name.rsplit_once('.')? {
        ("io.k8s.apimachinery.pkg.api.resource", "Quantity") => "quantity",
        ("io.k8s.apimachinery.pkg.util.intstr", "IntOrString") => "int-or-string",
        ("io.k8s.apimachinery.pkg.apis.meta.v1", "Time") => "time",
        ("io.k8s.apimachinery.pkg.apis.meta.v1", "MicroTime") => "micro-time",
        ("io.k8s.apimachinery.pkg.apis.meta.v1", "FieldsV1" | "Patch") => "object",
        ("io.k8s.apimachinery.pkg.runtime", "RawExtension") => "object",
        ("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1", "JSON") => "any",
        ("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1", "JSONSchemaPropsOrBool") => {
            "schema-or-bool"
        }
        ("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1", "JSONSchemaPropsOrArray") => {
            "schema-or-array"
        }
        ("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1", "JSONSchemaPropsOrStringArray") => {
            "schema-or-strings"
        }
        _ => return None,
    })
}
