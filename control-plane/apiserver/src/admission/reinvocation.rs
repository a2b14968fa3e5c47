//! Who is asked again: a mutating policy or webhook may have seen an object that a later one changed. Where its
//! `reinvocationPolicy` is `IfNeeded` it is asked once more, in a second round over all mutating stages.

use std::collections::BTreeSet;

use serde_json::Value;

/// What a stage remembers over the rounds of one request.
#[derive(Default)]
pub struct Reinvocation {
    /// Were asked since the last change, and may be asked again.
    asked: BTreeSet<String>,
    /// Have to be asked in the second round.
    due: BTreeSet<String>,
    output: Option<Value>,
}

/// One round of one stage.
pub struct Pass<'a> {
    round: u8,
    reinvocation: &'a mut Reinvocation,
    pub warnings: &'a mut Vec<String>,
    wants_another: bool,
}

impl<'a> Pass<'a> {
    /// `round` counts from 0.
    pub fn new(round: u8, reinvocation: &'a mut Reinvocation, warnings: &'a mut Vec<String>) -> Self {
        Self { round, reinvocation, warnings, wants_another: false }
    }

    pub fn round(&self) -> u8 {
        self.round
    }

    /// Before the stage's first call: whoever may be asked again is due where the object is not as the stage left it.
    pub fn begin(&mut self, object: &Value) {
        if self.round > 0 && self.reinvocation.output.as_ref() != Some(object) {
            self.all_due();
        }
    }

    /// Whether this one is asked in this round; in a second round nobody is asked for the first time.
    pub fn asks(&self, id: &str) -> bool {
        self.round == 0 || self.reinvocation.due.contains(id)
    }

    /// `id` was asked; `may_again` is its policy, `changed` whether it changed the object.
    pub fn asked(&mut self, id: &str, may_again: bool, changed: bool) {
        if changed {
            self.all_due();
            self.wants_another = true;
        }
        if may_again {
            self.reinvocation.asked.insert(id.to_owned());
        }
    }

    /// After the stage's last call.
    pub fn end(&mut self, object: &Value) {
        let may_be_asked = !self.reinvocation.asked.is_empty() || !self.reinvocation.due.is_empty();
        if self.round == 0 && may_be_asked {
            self.reinvocation.output = Some(object.clone());
        }
    }

    pub fn wants_another(&self) -> bool {
        self.wants_another
    }

    fn all_due(&mut self) {
        self.reinvocation.due.append(&mut self.reinvocation.asked);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_those_before_a_change_are_asked_again() {
        let (mut memory, mut warnings) = (Reinvocation::default(), Vec::new());
        let mut first = Pass::new(0, &mut memory, &mut warnings);
        first.begin(&json!(0));
        first.asked("early", true, false);
        first.asked("never", false, false);
        first.asked("changes", true, true);
        first.asked("late", true, false);
        first.end(&json!(1));
        assert!(first.wants_another());
        let mut second = Pass::new(1, &mut memory, &mut warnings);
        second.begin(&json!(1));
        let asked = |pass: &Pass<'_>| ["early", "never", "changes", "late", "new"].map(|id| pass.asks(id));
        assert_eq!(asked(&second), [true, false, false, false, false]);
        let mut changed_by_others = Pass::new(1, &mut memory, &mut warnings);
        changed_by_others.begin(&json!(2));
        assert_eq!(asked(&changed_by_others), [true, false, true, true, false]);
    }
}
