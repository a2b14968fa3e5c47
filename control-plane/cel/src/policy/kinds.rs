//! The kinds that a policy's rules name, and that of its parameters, for type checking.

use api::schema;
use serde_json::Value as Json;

use super::typing::TypeSource;

/// The kinds that `spec.matchConstraints.resourceRules` name without wildcards and that are known: built in, or defined
/// by one of `definitions` (CustomResourceDefinitions). In the order of group, version and kind.
pub fn matched_kinds(policy: &Json, definitions: &[Json]) -> Vec<TypeSource> {
    let rules = policy["spec"]["matchConstraints"]["resourceRules"].as_array().into_iter().flatten();
    let mut kinds: Vec<TypeSource> = Vec::new();
    for rule in rules {
        for group in plain(&rule["apiGroups"]) {
            for version in plain(&rule["apiVersions"]) {
                for resource in plain(&rule["resources"]) {
                    kinds.extend(find(group, version, definitions, Wanted::Resource(resource)));
                }
            }
        }
    }
    kinds.sort_by(|one, two| key(one).cmp(&key(two)));
    kinds.dedup_by(|one, two| key(one) == key(two));
    kinds
}

/// The kind of a policy's parameters, where it is known.
pub fn param_kind(policy: &Json, definitions: &[Json]) -> Option<TypeSource> {
    let kind = &policy["spec"]["paramKind"];
    let api_version = kind["apiVersion"].as_str()?;
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    find(group, version, definitions, Wanted::Kind(kind["kind"].as_str()?))
}

fn key(source: &TypeSource) -> (&str, &str, &str) {
    (&source.group, &source.version, &source.kind)
}

/// Values without wildcards, and without subresources.
fn plain(list: &Json) -> Vec<&str> {
    let values = list.as_array().into_iter().flatten().filter_map(Json::as_str);
    values.filter(|value| !value.contains(['*', '/'])).collect()
}

#[derive(Clone, Copy)]
enum Wanted<'w> {
    Resource(&'w str),
    Kind(&'w str),
}

fn find(group: &str, version: &str, definitions: &[Json], wanted: Wanted<'_>) -> Option<TypeSource> {
    let builtin = schema::builtin();
    let found = match wanted {
        Wanted::Resource(plural) => builtin.resource(group, version, plural),
        Wanted::Kind(kind) => builtin.kind(group, version, kind),
    };
    let source = |kind: &str, schema| TypeSource {
        group: group.to_owned(),
        version: version.to_owned(),
        kind: kind.to_owned(),
        schema,
    };
    if let Some(resource) = found {
        return Some(source(&resource.kind, None));
    }
    let names = |definition: &Json| match wanted {
        Wanted::Resource(plural) => definition["spec"]["names"]["plural"] == plural,
        Wanted::Kind(kind) => definition["spec"]["names"]["kind"] == kind,
    };
    let definition =
        definitions.iter().find(|definition| definition["spec"]["group"] == group && names(definition))?;
    let mut versions = definition["spec"]["versions"].as_array()?.iter();
    let served = versions.find(|served| served["name"] == version && served["served"] == true)?;
    let schema = served["schema"]["openAPIV3Schema"].clone();
    Some(source(definition["spec"]["names"]["kind"].as_str()?, Some(schema)))
}
