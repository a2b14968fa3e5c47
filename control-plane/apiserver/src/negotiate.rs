//! Content negotiation: which of the forms in `Accept` the answer takes.
//!
//! Protobuf is read but not written yet: a client that lists it beside JSON, as client-go does, gets JSON.

use api::status::Status;
use http::HeaderMap;

/// The media types of request bodies.
const READ: [&str; 3] = ["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];
/// The media types of answers.
const WRITTEN: [&str; 2] = ["application/json", "application/yaml"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    Json,
    Yaml,
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
}

impl Accepted {
    pub const JSON: Self = Self { encoding: Encoding::Json, shape: Shape::Object, meta_version: "v1" };

    pub fn content_type(self) -> &'static str {
        match self.encoding {
            Encoding::Json => "application/json",
            Encoding::Yaml => "application/yaml",
        }
    }
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
}

/// The clauses of `Accept`, best first.
pub fn media_ranges(headers: &HeaderMap) -> Vec<MediaRange<'_>> {
    let mut ranges: Vec<MediaRange<'_>> = headers
        .get_all(http::header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|clause| {
            let mut parts = clause.split(';').map(str::trim);
            let kind = parts.next().unwrap_or_default();
            let parameters: Vec<_> = parts.filter_map(|part| part.split_once('=')).collect();
            let quality = parameters
                .iter()
                .find(|(key, _)| *key == "q")
                .and_then(|(_, value)| value.parse::<f32>().ok())
                .map_or(1000, |quality| (quality * 1000.0) as u32);
            MediaRange { kind, parameters, quality }
        })
        .filter(|range| !range.kind.is_empty())
        .collect();
    ranges.sort_by_key(|range| std::cmp::Reverse(range.quality));
    ranges
}

/// Picks the answer's form, or 406. `shapes` tells whether Table and PartialObjectMetadata make sense here;
/// `?pretty` does not change the choice.
pub fn accepted(headers: &HeaderMap, shapes: &[Shape]) -> Result<Accepted, Status> {
    let ranges = media_ranges(headers);
    if ranges.is_empty() {
        return Ok(Accepted::JSON);
    }
    for range in &ranges {
        let encoding = match range.kind {
            "application/json" | "application/*" | "*/*" => Encoding::Json,
            "application/yaml" => Encoding::Yaml,
            _ => continue,
        };
        let meta_version = match range.parameter("v") {
            Some("v1beta1") => "v1beta1",
            _ => "v1",
        };
        let shape = match range.parameter("as") {
            None => Shape::Object,
            Some(_) if range.parameter("g") != Some("meta.k8s.io") => continue,
            Some("Table") => Shape::Table,
            Some("PartialObjectMetadata") => Shape::PartialObjectMetadata,
            Some("PartialObjectMetadataList") => Shape::PartialObjectMetadataList,
            Some(_) => continue,
        };
        if shape == Shape::Object || shapes.contains(&shape) {
            return Ok(Accepted { encoding, shape, meta_version });
        }
    }
    Err(Status::not_acceptable(&WRITTEN))
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
    match text.split(';').next().unwrap_or_default().trim() {
        "" | "application/json" | "*/*" => Ok(BodyEncoding::Json),
        "application/yaml" => Ok(BodyEncoding::Yaml),
        "application/vnd.kubernetes.protobuf" => Ok(BodyEncoding::Protobuf),
        _ => Err(Status::unsupported_media_type(&READ)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accept(text: &str, shapes: &[Shape]) -> Result<Accepted, Status> {
        let mut headers = HeaderMap::new();
        headers.insert("accept", text.parse().unwrap());
        accepted(&headers, shapes)
    }

    #[test]
    fn protobuf_with_a_json_alternative_gets_json() {
        let got = accept("application/vnd.kubernetes.protobuf,application/json", &[]).unwrap();
        assert_eq!(got, Accepted::JSON);
        assert_eq!(accept("application/vnd.kubernetes.protobuf", &[]).unwrap_err().code, 406);
    }

    #[test]
    fn kubectl_get_is_answered_with_a_table() {
        let header = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        assert_eq!(accept(header, &[Shape::Table]).unwrap().shape, Shape::Table);
        assert_eq!(accept(header, &[]).unwrap().shape, Shape::Object);
        assert_eq!(accept("application/json;as=Table;v=v1;g=meta.k8s.io", &[]).unwrap_err().code, 406);
    }
}
