use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use crate::{agent::read, table::Table};

#[derive(Deserialize)]
struct Diff {
    /// How many things of each kind were compared.
    compared: BTreeMap<String, u64>,
    differences: Vec<Difference>,
    /// Layers that did not answer, and why.
    unasked: Vec<String>,
}

#[derive(Deserialize)]
struct Difference {
    /// Who wants, and who does not have.
    between: [String; 2],
    kind: String,
    what: String,
    wanted: String,
    found: String,
}

/// Whether anything differs, or could not be asked.
pub fn differs(answer: &Value) -> anyhow::Result<bool> {
    let diff: Diff = read(answer)?;
    Ok(!diff.differences.is_empty() || !diff.unasked.is_empty())
}

pub fn text(answer: &Value, wide: bool) -> anyhow::Result<String> {
    let diff: Diff = read(answer)?;
    let mut text = String::new();
    if !diff.differences.is_empty() {
        let mut table = Table::new(&COLUMNS, &[], "");
        diff.in_order().into_iter().for_each(|difference| table.row(difference.cells()));
        text.push_str(&table.render(wide));
    }
    text.push_str(&format!("{}\n", diff.summary()));
    for reason in &diff.unasked {
        text.push_str(&format!("Not compared: {reason}\n"));
    }
    Ok(text)
}

/// The answers of several nodes, by their names.
pub fn text_of_all(answers: &Value, wide: bool) -> anyhow::Result<String> {
    let diffs: BTreeMap<String, Diff> = read(answers)?;
    let mut text = String::new();
    if diffs.values().any(|diff| !diff.differences.is_empty()) {
        let mut table = Table::new(&["NODE", "BETWEEN", "KIND", "WHAT", "WANTED", "FOUND"], &[], "");
        for (node, diff) in &diffs {
            for difference in diff.in_order() {
                let [between, kind, what, wanted, found] = difference.cells();
                table.row([node.clone(), between, kind, what, wanted, found]);
            }
        }
        text.push_str(&table.render(wide));
    }
    for (node, diff) in &diffs {
        if !diff.compared.is_empty() {
            text.push_str(&format!("{node}: {}\n", diff.summary()));
        }
        for reason in &diff.unasked {
            text.push_str(&format!("{node}: not compared: {reason}\n"));
        }
    }
    let good = diffs.values().filter(|diff| diff.differences.is_empty() && diff.unasked.is_empty()).count();
    text.push_str(&format!("{good} of {} nodes agree with themselves and the API.\n", diffs.len()));
    Ok(text)
}

const COLUMNS: [&str; 5] = ["BETWEEN", "KIND", "WHAT", "WANTED", "FOUND"];

impl Diff {
    fn in_order(&self) -> Vec<&Difference> {
        let mut differences: Vec<&Difference> = self.differences.iter().collect();
        differences.sort_by(|one, other| (&one.between, &one.what).cmp(&(&other.between, &other.what)));
        differences
    }

    fn summary(&self) -> String {
        let compared =
            COMPARED.iter().filter_map(|(name, what)| Some(format!("{} {what}", self.compared.get(*name)?)));
        let result = match self.differences.len() {
            0 => "no difference".to_owned(),
            1 => "1 difference".to_owned(),
            count => format!("{count} differences"),
        };
        format!("Compared {}: {result}.", compared.collect::<Vec<_>>().join(", "))
    }
}

impl Difference {
    fn cells(&self) -> [String; 5] {
        let or_nothing = |text: &str| if text.is_empty() { "nothing" } else { text }.to_owned();
        [
            self.between.join(" and "),
            self.kind.clone(),
            self.what.clone(),
            or_nothing(&self.wanted),
            or_nothing(&self.found),
        ]
    }
}

/// In the order in which a packet's way is made.
const COMPARED: [(&str, &str); 5] = [
    ("objects", "services of the API"),
    ("services", "services of the maps"),
    ("learned", "learned routes"),
    ("routes", "routes of the kernel"),
    ("pods", "pods"),
];

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn agreement_says_what_was_compared() {
        let answer = json!({
            "compared": { "routes": 12, "learned": 3, "services": 40, "objects": 40, "pods": 9 },
            "differences": [], "unasked": [],
        });
        assert_eq!(
            text(&answer, false).unwrap(),
            "Compared 40 services of the API, 40 services of the maps, 3 learned routes, 12 routes of the kernel, 9 \
             pods: no difference.\n"
        );
        assert!(!differs(&answer).unwrap());
    }

    #[test]
    fn each_difference_shows_both_sides_and_a_layer_that_did_not_answer_why() {
        let answer = json!({
            "compared": { "routes": 2 },
            "differences": [
                { "between": ["agent", "FIB"], "kind": "route", "what": "10.244.1.0/26", "wanted": "via 192.0.2.2",
                  "found": "" },
                { "between": ["agent", "BPF"], "kind": "pod", "what": "10.244.0.2", "wanted": "", "found": "interface 9" },
            ],
            "unasked": ["API: no answer within 5 s"],
        });
        let text = text(&answer, false).unwrap();
        let words =
            |line: usize| text.lines().nth(line).unwrap().split("   ").map(str::trim).collect::<Vec<_>>();
        let words = |line| words(line).into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>();
        assert_eq!(words(0), ["BETWEEN", "KIND", "WHAT", "WANTED", "FOUND"]);
        assert_eq!(words(1), ["agent and BPF", "pod", "10.244.0.2", "nothing", "interface 9"]);
        assert_eq!(words(2), ["agent and FIB", "route", "10.244.1.0/26", "via 192.0.2.2", "nothing"]);
        assert_eq!(words(3), ["Compared 2 routes of the kernel: 2 differences."]);
        assert_eq!(words(4), ["Not compared: API: no answer within 5 s"]);
        assert!(differs(&answer).unwrap());
        let silent = json!({ "compared": {}, "differences": [], "unasked": ["the node: x"] });
        assert!(differs(&silent).unwrap());
    }

    #[test]
    fn of_many_nodes_each_is_named_and_one_that_is_silent_does_not_agree() {
        let answers = json!({
            "node-b": { "compared": { "routes": 3 }, "unasked": [], "differences": [
                { "between": ["agent", "FIB"], "kind": "route", "what": "10.244.1.0/26", "wanted": "via 192.0.2.2",
                  "found": "" },
            ] },
            "node-a": { "compared": { "routes": 2 }, "differences": [], "unasked": [] },
            "node-c": { "compared": {}, "differences": [], "unasked": ["the agent of node-c does not answer"] },
        });
        let text = text_of_all(&answers, false).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("NODE ") && lines[1].starts_with("node-b "), "{text}");
        assert_eq!(
            lines[2..],
            [
                "node-a: Compared 2 routes of the kernel: no difference.",
                "node-b: Compared 3 routes of the kernel: 1 difference.",
                "node-c: not compared: the agent of node-c does not answer",
                "1 of 3 nodes agree with themselves and the API.",
            ]
        );
    }
}
