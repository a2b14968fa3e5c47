//! Label selectors as metav1.LabelSelector has them, and the labels that they are held against.

use std::{collections::BTreeMap, fmt};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

/// Names with their values, in order.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(crate) struct Labels(Box<[(Box<str>, Box<str>)]>);

impl Labels {
    pub(crate) fn new<'a>(labels: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let labels: BTreeMap<&str, &str> = labels.into_iter().collect();
        Self(labels.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        let at = self.0.binary_search_by(|(known, _)| (**known).cmp(name)).ok()?;
        Some(&self.0[at].1)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (&**name, &**value))
    }
}

/// Requirements that must all hold; without any, everything is selected.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub(crate) struct Selector(Box<[Requirement]>);

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
struct Requirement {
    label: Box<str>,
    holds: Holds,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum Holds {
    In(Box<[Box<str>]>),
    /// Also without the label.
    NotIn(Box<[Box<str>]>),
    Exists,
    DoesNotExist,
}

impl Selector {
    /// # Errors
    /// What of it is none, where.
    pub(crate) fn read(selector: &LabelSelector) -> Result<Self, String> {
        let equals = |(label, value): (&String, &String)| Requirement {
            label: label.as_str().into(),
            holds: Holds::In([value.as_str().into()].into()),
        };
        let mut requirements: Vec<Requirement> = selector.match_labels.iter().flatten().map(equals).collect();
        for (n, expression) in selector.match_expressions.iter().flatten().enumerate() {
            let mut values: Vec<Box<str>> =
                expression.values.iter().flatten().map(|value| value.as_str().into()).collect();
            values.sort();
            values.dedup();
            let holds = match (expression.operator.as_str(), values.is_empty()) {
                ("In", false) => Holds::In(values.into()),
                ("NotIn", false) => Holds::NotIn(values.into()),
                ("Exists", true) => Holds::Exists,
                ("DoesNotExist", true) => Holds::DoesNotExist,
                (operator @ ("In" | "NotIn"), true) => {
                    return Err(format!("matchExpressions[{n}].values: {operator} needs some"));
                }
                (operator @ ("Exists" | "DoesNotExist"), false) => {
                    return Err(format!("matchExpressions[{n}].values: {operator} takes none"));
                }
                (operator, _) => {
                    return Err(format!("matchExpressions[{n}].operator: there is no {operator:?}"));
                }
            };
            requirements.push(Requirement { label: expression.key.as_str().into(), holds });
        }
        requirements.sort();
        requirements.dedup();
        Ok(Self(requirements.into()))
    }

    pub(crate) fn matches(&self, labels: &Labels) -> bool {
        self.0.iter().all(|requirement| requirement.matches(labels.get(&requirement.label)))
    }

    pub(crate) fn selects_everything(&self) -> bool {
        self.0.is_empty()
    }

    /// Of whatever is selected, one of these labels is known: `None` where no requirement says so.
    pub(crate) fn labels(&self) -> Option<impl Iterator<Item = (&str, &str)>> {
        let within = |requirement: &Requirement| match &requirement.holds {
            Holds::In(values) => Some(values.len()),
            _ => None,
        };
        let fewest = self.0.iter().filter(|it| within(it).is_some()).min_by_key(|it| within(it))?;
        let Holds::In(values) = &fewest.holds else { return None };
        Some(values.iter().map(|value| (&*fewest.label, &**value)))
    }
}

impl Requirement {
    fn matches(&self, value: Option<&str>) -> bool {
        let is_among =
            |values: &[Box<str>]| value.is_some_and(|value| values.iter().any(|it| **it == *value));
        match &self.holds {
            Holds::In(values) => is_among(values),
            Holds::NotIn(values) => !is_among(values),
            Holds::Exists => value.is_some(),
            Holds::DoesNotExist => value.is_none(),
        }
    }
}

/// As kubectl takes it.
impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, Requirement { label, holds }) in self.0.iter().enumerate() {
            if n > 0 {
                f.write_str(",")?;
            }
            match holds {
                Holds::In(values) if values.len() == 1 => write!(f, "{label}={}", values[0])?,
                Holds::In(values) => write!(f, "{label} in ({})", values.join(","))?,
                Holds::NotIn(values) => write!(f, "{label} notin ({})", values.join(","))?,
                Holds::Exists => write!(f, "{label}")?,
                Holds::DoesNotExist => write!(f, "!{label}")?,
            }
        }
        Ok(())
    }
}
