use std::{net::IpAddr, path::PathBuf};

use anyhow::{Context, bail};
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::Value;

use super::limited;
use crate::{
    agent::{Agent, read},
    arguments::Output,
    table::{Table, bytes, known, yes},
};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Map {
    name: String,
    #[serde(rename = "type")]
    kind: String,
    key_bytes: u32,
    value_bytes: u32,
    /// Absent where there is nothing to count.
    entries: Option<u64>,
    capacity: u32,
    memory_bytes: Option<u64>,
    layout: Option<u32>,
    path: PathBuf,
}

impl Map {
    fn fill(&self) -> String {
        match self.entries {
            Some(entries) => format!("{:.1}%", entries as f64 * 100.0 / f64::from(self.capacity.max(1))),
            None => String::new(),
        }
    }
}

pub fn list(answer: &Value, wide: bool) -> anyhow::Result<String> {
    if let Some(error) = answer["error"].as_str() {
        bail!("the agent cannot read its maps: {error}");
    }
    let maps: Vec<Map> = read(answer)?;
    let mut table = Table::new(
        &["NAME", "TYPE", "KEY", "VALUE", "ENTRIES", "CAPACITY", "FILL", "MEMORY"],
        &["LAYOUT", "PATH"],
        "No maps: the datapath is not loaded.",
    );
    for map in maps {
        table.row([
            map.name.clone(),
            map.kind.clone(),
            map.key_bytes.to_string(),
            map.value_bytes.to_string(),
            known(map.entries),
            map.capacity.to_string(),
            map.fill(),
            map.memory_bytes.map(bytes).unwrap_or_default(),
            known(map.layout),
            map.path.display().to_string(),
        ]);
    }
    Ok(table.render(wide))
}

/// The fields of a line, in their order.
pub struct Row(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Row {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;

        impl<'de> Visitor<'de> for Fields {
            type Value = Row;

            fn expecting(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                out.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Row, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Row(fields))
            }
        }

        deserializer.deserialize_map(Fields)
    }
}

/// Rows whose first one says which columns there are.
#[derive(Default)]
struct Rows {
    table: Option<Table>,
    fields: Vec<String>,
}

impl Rows {
    fn add(&mut self, line: &str) -> anyhow::Result<()> {
        let Row(row) =
            serde_json::from_str(line).context("a line of the agent's answer is no JSON object")?;
        let table = self.table.get_or_insert_with(|| {
            self.fields = row.iter().map(|(name, _)| name.clone()).collect();
            Table::of_fields(self.fields.iter().map(String::as_str), "")
        });
        let cell = |field: &String| {
            row.iter().find(|(name, _)| name == field).map(|(_, value)| cell(value)).unwrap_or_default()
        };
        table.row(self.fields.iter().map(cell));
        Ok(())
    }

    fn render(&self) -> String {
        match &self.table {
            Some(table) => table.render(true),
            None => "No such elements.\n".to_owned(),
        }
    }
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::Bool(value) => yes(*value),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

pub async fn dump(
    agent: &Agent,
    name: &str,
    address: Option<IpAddr>,
    limit: usize,
    output: Output,
) -> anyhow::Result<String> {
    let address = address.map(|address| format!("address={address}&")).unwrap_or_default();
    let mut rows = Rows::default();
    limited(agent, &format!("/v1/maps/{name}?{address}"), limit, output, |line| rows.add(line)).await?;
    Ok(if output == Output::Json { String::new() } else { rows.render() })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn maps_show_how_full_they_are() {
        let answer = json!([
            { "name": "FRONTENDS_2", "type": "hash", "keyBytes": 20, "valueBytes": 24, "entries": 1311,
              "capacity": 131_072, "memoryBytes": 2_200_000, "layout": 2, "path": "/sys/fs/bpf/seaway/maps/FRONTENDS_2" },
            { "name": "DROPS_1", "type": "ringbuf", "keyBytes": 0, "valueBytes": 0, "entries": null,
              "capacity": 65_536, "memoryBytes": null, "layout": 1, "path": "/p" },
        ]);
        assert_eq!(
            list(&answer, false).unwrap(),
            "NAME          TYPE      KEY   VALUE   ENTRIES   CAPACITY   FILL   MEMORY\n\
             FRONTENDS_2   hash      20    24      1311      131072     1.0%   2.1 MiB\n\
             DROPS_1       ringbuf   0     0       -         65536      -      -\n"
        );
        assert!(
            list(&answer, true).unwrap().contains("2.1 MiB   2        /sys/fs/bpf/seaway/maps/FRONTENDS_2\n")
        );
        let error = list(&json!({ "error": "no such folder" }), false).unwrap_err();
        assert_eq!(error.to_string(), "the agent cannot read its maps: no such folder");
    }

    #[test]
    fn elements_have_the_columns_that_the_agent_names_in_its_order() {
        let mut rows = Rows::default();
        rows.add(r#"{"slot":0,"backend":"10.244.0.2:8080","local":true,"service":null}"#).unwrap();
        rows.add(r#"{"slot":1,"backend":null,"local":false,"service":"default/web"}"#).unwrap();
        assert_eq!(
            rows.render(),
            "SLOT   BACKEND           LOCAL   SERVICE\n\
             0      10.244.0.2:8080   yes     -\n\
             1      -                 no      default/web\n"
        );
        assert_eq!(Rows::default().render(), "No such elements.\n");
        let error = rows.add("[]").unwrap_err();
        assert_eq!(error.to_string(), "a line of the agent's answer is no JSON object");
    }
}
