use ipnetwork::IpNetwork;
use serde::Deserialize;
use serde_json::Value;

use crate::{agent::read, table::Table};

#[derive(Deserialize)]
struct Block {
    block: IpNetwork,
    used: u64,
    /// Free or cooling down.
    free: u64,
}

pub fn list(answer: &Value, wide: bool) -> anyhow::Result<String> {
    let mut blocks: Vec<Block> = read(answer)?;
    blocks.sort_by_key(|block| block.block);
    let mut table =
        Table::new(&["BLOCK", "USED", "FREE"], &[], "No blocks: this node has not been given any yet.");
    for block in blocks {
        table.row([block.block.to_string(), block.used.to_string(), block.free.to_string()]);
    }
    Ok(table.render(wide))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn blocks_say_how_full_they_are() {
        let answer = json!([{ "block": "10.244.0.0/26", "used": 3, "free": 61 }]);
        assert_eq!(list(&answer, false).unwrap(), "BLOCK           USED   FREE\n10.244.0.0/26   3      61\n");
        assert_eq!(list(&json!([]), false).unwrap(), "No blocks: this node has not been given any yet.\n");
    }
}
