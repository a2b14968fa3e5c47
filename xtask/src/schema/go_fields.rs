//! What neither source crate says of a field and Go's types do, from the committed list `go_fields.txt`: whether it is a
//! pointer (only then does protobuf tell an absent scalar from a zero), whether JSON shows its zero, and the protobuf tags
//! of fields that are newer than k8s-pb.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};

const LIST: &str = include_str!("go_fields.txt");

#[derive(Clone, Copy, Debug, Default)]
pub struct GoField {
    pub is_pointer: bool,
    pub shows_zero: bool,
    /// A list that Go has as a type of its own: a message whose first field repeats.
    pub is_wrapped: bool,
    /// Separated by slashes, as in the table.
    pub tags: Option<&'static str>,
}

/// The list, which notices what nobody asks for.
pub struct GoFields {
    /// By type and name, with whether somebody asked.
    fields: BTreeMap<&'static str, BTreeMap<&'static str, (GoField, bool)>>,
}

impl GoFields {
    pub fn read() -> Self {
        let mut fields: BTreeMap<_, BTreeMap<_, _>> = BTreeMap::new();
        for line in LIST.lines().filter(|line| !line.starts_with('#')) {
            let mut words = line.split(' ');
            let ty = words.next().unwrap_or_default();
            for word in words {
                let (word, tags) = match word.split_once('=') {
                    Some((word, tags)) => (word, Some(tags)),
                    None => (word, None),
                };
                let name = word.trim_end_matches(['*', '!', '~']);
                let marks = &word[name.len()..];
                let field = GoField {
                    is_pointer: marks.contains('*'),
                    shows_zero: marks.contains('!'),
                    is_wrapped: marks.contains('~'),
                    tags,
                };
                fields.entry(ty).or_default().insert(name, (field, false));
            }
        }
        Self { fields }
    }

    /// What the list says of a field; nothing in most cases.
    pub fn take(&mut self, ty: &str, name: &str) -> GoField {
        let found = self.fields.get_mut(ty).and_then(|fields| fields.get_mut(name));
        found.map_or_else(GoField::default, |(field, used)| {
            *used = true;
            *field
        })
    }

    /// # Errors
    /// When the list names a field that is in no type.
    pub fn check_used(&self) -> Result<()> {
        let of_type = |(ty, fields): (&&str, &BTreeMap<&str, (GoField, bool)>)| {
            let unused = fields.iter().filter(|(_, (_, used))| !used);
            unused.map(|(name, _)| format!("{ty}.{name}")).collect::<Vec<_>>()
        };
        let unused: Vec<String> = self.fields.iter().flat_map(of_type).collect();
        ensure!(unused.is_empty(), "go_fields.txt names fields that are in no type: {}", unused.join(", "));
        Ok(())
    }
}
