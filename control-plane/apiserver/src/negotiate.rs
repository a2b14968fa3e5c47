//! Content negotiation: which of the forms in `Accept` the answer takes.
//!
//! Every kind is written as JSON and YAML, built-in kinds also as protobuf; of custom resources only the metadata is. A
//! watch is written as JSON or protobuf, a Table never as protobuf.

use api::status::Status;
use http::HeaderMap;

const JSON: &str = "application/json";
const YAML: &str = "application/yaml";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
/// The media types of bodies, in the order of preference.
const MEDIA_TYPES: [&str; 3] = [JSON, YAML, PROTOBUF];
/// The media types of watches.
const STREAM_TYPES: [&str; 2] =
    ["application/json;stream=watch", "application/vnd.kubernetes.protobuf;stream=watch"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    Json,
    Yaml,
    Protobuf,
}

/// The shape asked for with `as=`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    Object,
    Table,
    PartialObjectMetadata,
    PartialObjectMetadataList,
}

/// The negotiated form of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    pub encoding: Encoding,
    pub shape: Shape,
    /// `v1` or `v1beta1` of meta.k8s.io, for the shapes.
    pub meta_version: &'static str,
    /// JSON with line breaks and indentation.
    pub pretty: bool,
}

impl Accepted {
    pub const JSON: Self =
        Self { encoding: Encoding::Json, shape: Shape::Object, meta_version: "v1", pretty: false };

    pub fn content_type(self) -> &'static str {
        match self.encoding {
            Encoding::Json => JSON,
            Encoding::Yaml => YAML,
            Encoding::Protobuf => PROTOBUF,
        }
    }

    /// The content type of a watch.
    pub fn stream_type(self) -> &'static str {
        match self.encoding {
            Encoding::Json | Encoding::Yaml => JSON,
            Encoding::Protobuf => STREAM_TYPES[1],
        }
    }

    /// Whether cached bytes of this encoding are the answer as they are.
    pub fn is_plain(self, encoding: Encoding) -> bool {
        self.shape == Shape::Object && self.encoding == encoding && !self.pretty
    }
}

/// What an answer can be.
#[derive(Clone, Copy, Debug)]
pub struct Offer<'a> {
    pub shapes: &'a [Shape],
    /// Whether the object itself has a protobuf form; its metadata has one in any case.
    pub protobuf: bool,
    /// A watch, which has no YAML form.
    pub stream: bool,
}

impl Offer<'_> {
    /// A built-in kind that is always shown whole: a Status, a review, a Scale.
    pub const WHOLE: Self = Self { shapes: &[], protobuf: true, stream: false };

    /// The answer's form, or 406. An absent header asks for JSON.
    pub fn accepted(&self, headers: &HeaderMap) -> Result<Accepted, Status> {
        let ranges = media_ranges(headers);
        if ranges.is_empty() {
            return Ok(Accepted::JSON);
        }
        ranges.iter().find_map(|range| self.answer_to(range)).ok_or_else(|| {
            Status::not_acceptable(if self.stream { STREAM_TYPES.as_slice() } else { &MEDIA_TYPES })
        })
    }

    fn answer_to(&self, range: &MediaRange<'_>) -> Option<Accepted> {
        let encodings = [Encoding::Json, Encoding::Yaml, Encoding::Protobuf];
        let (shape, meta_version) = shape_of(range)?;
        let fits = |encoding: Encoding| {
            let media_type = Accepted { encoding, ..Accepted::JSON }.content_type();
            let named = matches!(range.kind, "*/*" | "application/*") || range.kind == media_type;
            let written = match (encoding, shape) {
                (Encoding::Protobuf, Shape::Table) => false,
                (Encoding::Protobuf, Shape::Object) => self.protobuf,
                (Encoding::Yaml, _) => !self.stream,
                _ => true,
            };
            named && written
        };
        if shape != Shape::Object && !self.shapes.contains(&shape) {
            return None;
        }
        let encoding = encodings.into_iter().find(|encoding| fits(*encoding))?;
        let pretty = range.parameter("pretty") == Some("1");
        Some(Accepted { encoding, shape, meta_version, pretty })
    }
}

/// What a clause's parameters ask for; `None` where it is something that nobody has.
fn shape_of(range: &MediaRange<'_>) -> Option<(Shape, &'static str)> {
    if !matches!(range.parameter("stream"), None | Some("" | "watch"))
        || !matches!(range.parameter("sv"), None | Some("" | "v1"))
    {
        return None;
    }
    let (kind, group, version) = (range.parameter("as"), range.parameter("g"), range.parameter("v"));
    if (kind, group, version) == (None, None, None) {
        return Some((Shape::Object, "v1"));
    }
    let meta_version = match (group, version) {
        (Some("meta.k8s.io"), Some("v1")) => "v1",
        (Some("meta.k8s.io"), Some("v1beta1")) => "v1beta1",
        _ => return None,
    };
    let shape = match kind {
        Some("Table") => Shape::Table,
        Some("PartialObjectMetadata") => Shape::PartialObjectMetadata,
        Some("PartialObjectMetadataList") => Shape::PartialObjectMetadataList,
        _ => return None,
    };
    Some((shape, meta_version))
}

/// One clause of an Accept header.
pub struct MediaRange<'a> {
    pub kind: &'a str,
    pub parameters: Vec<(&'a str, &'a str)>,
    quality: u32,
}

impl MediaRange<'_> {
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(key, _)| *key == name).map(|(_, value)| *value)
    }

    /// How much is left open: the narrower comes first.
    fn openness(&self) -> usize {
        self.kind.split('/').filter(|part| *part == "*").count()
    }
}

/// A header that lists more is read only so far.
const CLAUSES_MAX: usize = 64;

/// The clauses of `Accept`, best first.
pub fn media_ranges(headers: &HeaderMap) -> Vec<MediaRange<'_>> {
    let mut ranges: Vec<MediaRange<'_>> = headers
        .get_all(http::header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .take(CLAUSES_MAX)
        .map(|clause| {
            let mut parts = clause.split(';').map(str::trim);
            let kind = parts.next().unwrap_or_default();
            let parameters: Vec<_> = parts
                .filter_map(|part| part.split_once('='))
                .map(|(name, value)| (name.trim(), value.trim().trim_matches('"')))
                .collect();
            let quality = parameters
                .iter()
                .find(|(key, _)| *key == "q")
                .and_then(|(_, value)| value.parse::<f32>().ok())
                .filter(|quality| (0.0..=1.0).contains(quality))
                .map_or(1000, |quality| (quality * 1000.0) as u32);
            MediaRange { kind, parameters, quality }
        })
        .filter(|range| !range.kind.is_empty())
        .collect();
    ranges.sort_by_key(|range| (std::cmp::Reverse(range.quality), range.openness()));
    ranges
}

/// The form of an answer that is always JSON, YAML or, for a built-in kind, protobuf.
pub fn accepted(headers: &HeaderMap, shapes: &[Shape]) -> Result<Accepted, Status> {
    Offer { shapes, ..Offer::WHOLE }.accepted(headers)
}

/// The form of a document that has no protobuf form: discovery, OpenAPI.
pub fn accepted_document(headers: &HeaderMap) -> Result<Accepted, Status> {
    Offer { protobuf: false, ..Offer::WHOLE }.accepted(headers)
}

/// The form of an error: what the client accepts, else JSON.
pub fn for_error(headers: &HeaderMap) -> Accepted {
    Offer::WHOLE.accepted(headers).unwrap_or(Accepted::JSON)
}

/// Whether JSON is to be readable: asked for, or asked by a program that people read the output of.
pub fn wants_pretty(headers: &HeaderMap, pretty: Option<&str>) -> bool {
    match pretty {
        Some(value) if !value.is_empty() => matches!(value, "1" | "t" | "T" | "true" | "TRUE" | "True"),
        _ => {
            let agent = headers.get(http::header::USER_AGENT).and_then(|value| value.to_str().ok());
            agent.is_some_and(|agent| {
                ["curl", "Wget", "Mozilla/5.0"].iter().any(|name| agent.starts_with(name))
            })
        }
    }
}

/// How a request body is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyEncoding {
    Json,
    Yaml,
    Protobuf,
}

/// The encoding of a request body by its Content-Type; absent counts as JSON, as upstream has it.
pub fn body_encoding(headers: &HeaderMap) -> Result<BodyEncoding, Status> {
    let text =
        headers.get(http::header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    match text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase().as_str() {
        "" | "*/*" | JSON => Ok(BodyEncoding::Json),
        YAML => Ok(BodyEncoding::Yaml),
        PROTOBUF => Ok(BodyEncoding::Protobuf),
        _ => Err(Status::unsupported_media_type(&MEDIA_TYPES)),
    }
}

/// 415 for the protobuf form of a custom resource, which has none.
pub fn no_protobuf() -> Status {
    Status::unsupported_media_type(&[JSON, YAML])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accept(text: &str, offer: Offer<'_>) -> Result<Accepted, Status> {
        let mut headers = HeaderMap::new();
        headers.insert("accept", text.parse().unwrap());
        offer.accepted(&headers)
    }

    #[test]
    fn the_best_clause_that_can_be_answered_wins() {
        let encoding = |text: &str| accept(text, Offer::WHOLE).unwrap().encoding;
        assert_eq!(encoding("application/vnd.kubernetes.protobuf,application/json"), Encoding::Protobuf);
        assert_eq!(encoding("application/json,application/vnd.kubernetes.protobuf"), Encoding::Json);
        assert_eq!(
            encoding("application/vnd.kubernetes.protobuf;q=0.5,application/yaml;q=0.8,*/*;q=0.1"),
            Encoding::Yaml
        );
        assert_eq!(encoding("*/*, application/vnd.kubernetes.protobuf"), Encoding::Protobuf);
        assert_eq!(encoding("application/cbor, application/*"), Encoding::Json);
        assert_eq!(encoding("application/vnd.kubernetes.protobuf;stream=watch"), Encoding::Protobuf);
        assert_eq!(
            accept("application/cbor", Offer::WHOLE).unwrap_err().message,
            "only the following media types are accepted: application/json, application/yaml, \
             application/vnd.kubernetes.protobuf"
        );
        let stream = Offer { stream: true, ..Offer::WHOLE };
        assert_eq!(
            accept("application/yaml", stream).unwrap_err().message,
            "only the following media types are accepted: application/json;stream=watch, \
             application/vnd.kubernetes.protobuf;stream=watch"
        );
    }

    #[test]
    fn custom_resources_have_protobuf_for_their_metadata_only() {
        let offer =
            Offer { shapes: &[Shape::Table, Shape::PartialObjectMetadata], protobuf: false, stream: false };
        let protobuf = "application/vnd.kubernetes.protobuf";
        assert_eq!(accept(protobuf, offer).unwrap_err().code, 406);
        assert_eq!(accept(&format!("{protobuf}, application/json"), offer).unwrap().encoding, Encoding::Json);
        let partial = format!("{protobuf};as=PartialObjectMetadata;g=meta.k8s.io;v=v1");
        assert_eq!(accept(&partial, offer).unwrap().encoding, Encoding::Protobuf);
        let table = format!("{protobuf};as=Table;g=meta.k8s.io;v=v1, application/json");
        assert_eq!(accept(&table, offer).unwrap(), Accepted::JSON);
    }

    #[test]
    fn kubectl_get_is_answered_with_a_table() {
        let header = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        let tables = Offer { shapes: &[Shape::Table], ..Offer::WHOLE };
        assert_eq!(accept(header, tables).unwrap().shape, Shape::Table);
        assert_eq!(accept(header, Offer::WHOLE).unwrap().shape, Shape::Object);
        for text in [
            "application/json;as=Table;v=v1;g=meta.k8s.io",
            "application/json;as=Chair;v=v1;g=meta.k8s.io",
            "application/json;v=v1",
            "application/json;stream=other",
        ] {
            assert_eq!(accept(text, Offer::WHOLE).unwrap_err().code, 406, "{text}");
        }
    }
}
