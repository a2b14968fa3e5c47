use ipnetwork::IpNetwork;
use serde::Deserialize;
use serde_json::Value;

use crate::{agent::read, table::Table};

#[derive(Deserialize)]
struct Block {
    block: IpNetwork,
    pool: Option<String>,
    /// Empty where the store was not seen yet.
    owner: String,
    used: u64,
    /// Free or cooling down.
    free: u64,
    /// Set aside for other nodes.
    lent: u64,
    /// One address of another node's block.
    borrowed: bool,
}

pub fn list(answer: &Value, wide: bool) -> anyhow::Result<String> {
    let mut blocks: Vec<Block> = read(answer)?;
    blocks.sort_by_key(|block| block.block);
    let mut table = Table::new(
        &["BLOCK", "POOL", "OWNER", "USED", "FREE", "LENT", "BORROWED"],
        &[],
        "No blocks: this node has not been given any yet.",
    );
    for block in blocks {
        let or_dash = |text: String| if text.is_empty() { "-".to_owned() } else { text };
        table.row([
            block.block.to_string(),
            or_dash(block.pool.unwrap_or_default()),
            or_dash(block.owner),
            block.used.to_string(),
            block.free.to_string(),
            block.lent.to_string(),
            if block.borrowed { "yes" } else { "no" }.to_owned(),
        ]);
    }
    Ok(table.render(wide))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn blocks_say_how_full_they_are_and_whose() {
        let answer = json!([
            { "block": "10.244.0.0/26", "pool": "a", "owner": "n1", "used": 3, "free": 57, "lent": 4, "borrowed": false },
            { "block": "10.9.0.7/32", "pool": null, "owner": "", "used": 1, "free": 0, "lent": 0, "borrowed": true },
        ]);
        let text = list(&answer, false).unwrap();
        let words = |line: usize| text.lines().nth(line).unwrap().split_whitespace().collect::<Vec<_>>();
        assert_eq!(words(0), ["BLOCK", "POOL", "OWNER", "USED", "FREE", "LENT", "BORROWED"]);
        assert_eq!(words(1), ["10.9.0.7/32", "-", "-", "1", "0", "0", "yes"]);
        assert_eq!(words(2), ["10.244.0.0/26", "a", "n1", "3", "57", "4", "no"]);
        assert_eq!(list(&json!([]), false).unwrap(), "No blocks: this node has not been given any yet.\n");
    }
}
