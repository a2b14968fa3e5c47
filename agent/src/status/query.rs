//! What stands behind the question mark: `name=value` pairs, whose values are names, numbers and addresses as they are.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::str::FromStr;

#[derive(Debug, Default)]
pub struct Query<'a> {
    value_by_name: BTreeMap<&'a str, &'a str>,
}

impl<'a> Query<'a> {
    /// # Errors
    /// Names what is not in `known` and what stands there twice.
    pub fn parse(text: Option<&'a str>, known: &[&str]) -> Result<Query<'a>, String> {
        let mut query = Query::default();
        for pair in text.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let Some((name, value)) = pair.split_once('=') else {
                return Err(format!("{pair:?} is no NAME=VALUE"));
            };
            if !known.contains(&name) {
                return Err(format!("{name:?} is none of {}", known.join(", ")));
            }
            if query.value_by_name.insert(name, value).is_some() {
                return Err(format!("{name} stands there twice"));
            }
        }
        Ok(query)
    }

    pub fn text(&self, name: &str) -> Option<&'a str> {
        self.value_by_name.get(name).copied()
    }

    /// # Errors
    /// Says why the value is none of the type.
    pub fn value<T: FromStr<Err: Display>>(&self, name: &str) -> Result<Option<T>, String> {
        let parsed = |value: &str| value.parse().map_err(|error| format!("{name}={value}: {error}"));
        self.text(name).map(parsed).transpose()
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    #[test]
    fn values_are_parsed_and_what_is_wrong_is_named() {
        let known = ["address", "limit"];
        let query = Query::parse(Some("address=fd00::1&limit=7"), &known).unwrap();
        assert_eq!(query.value::<IpAddr>("address"), Ok(Some("fd00::1".parse().unwrap())));
        assert_eq!(query.value::<usize>("limit"), Ok(Some(7)));
        assert_eq!(Query::parse(None, &known).unwrap().value::<usize>("limit"), Ok(None));
        let refusal = |text| Query::parse(Some(text), &known).unwrap_err();
        assert_eq!(refusal("adress=::1"), "\"adress\" is none of address, limit");
        assert_eq!(refusal("limit=1&limit=2"), "limit stands there twice");
        assert_eq!(refusal("limit"), "\"limit\" is no NAME=VALUE");
        let query = Query::parse(Some("address=10.0.0.256&limit=-1"), &known).unwrap();
        assert_eq!(
            query.value::<IpAddr>("address").unwrap_err(),
            "address=10.0.0.256: invalid IP address syntax"
        );
        assert_eq!(query.value::<usize>("limit").unwrap_err(), "limit=-1: invalid digit found in string");
    }
}
