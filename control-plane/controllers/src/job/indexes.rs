//! Sets of completion indexes and their text form: `1,3-5,7`. No IO.

use std::collections::BTreeSet;

/// Reads the text form; parts that make no sense are left out.
pub fn parse(text: &str) -> BTreeSet<i32> {
    let mut indexes = BTreeSet::new();
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<i32>(), last.parse::<i32>()) {
            indexes.extend(first..=last);
        }
    }
    indexes
}

/// Writes the text form: runs of three and more become a range, of two a pair.
pub fn format(indexes: &BTreeSet<i32>) -> String {
    let mut runs: Vec<(i32, i32)> = Vec::new();
    for index in indexes {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == *index => *last = *index,
            _ => runs.push((*index, *index)),
        }
    }
    let text = |(first, last): &(i32, i32)| match last - first {
        0 => first.to_string(),
        1 => format!("{first},{last}"),
        _ => format!("{first}-{last}"),
    };
    runs.iter().map(text).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn runs_become_ranges() {
        assert_eq!(format(&[1, 3, 4, 5, 7, 8].into()), "1,3-5,7,8");
        assert_eq!(format(&BTreeSet::new()), "");
    }

    proptest! {
        #[test]
        fn the_text_form_keeps_the_set(indexes in prop::collection::btree_set(0_i32..200, 0..50)) {
            prop_assert_eq!(parse(&format(&indexes)), indexes);
        }
    }
}
