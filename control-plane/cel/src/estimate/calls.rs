//! What calls cost by the sizes of their arguments.

use super::{Argument, Coster, Estimate};
use crate::{
    ast::{Id, Kind, Literal},
    types::Type,
};

const TRAVERSAL: f64 = 0.1;
const REGEX: f64 = 0.25;
/// Characters of the longest pattern behind a named format.
const FORMAT_PATTERN_MAX: f64 = 128.0;
const FORMAT_MAX: u64 = 64;

type CallCost = (Estimate, Option<Estimate>);

fn fixed(cost: u64) -> Option<CallCost> {
    Some((Estimate::fixed(cost), None))
}

impl Coster<'_> {
    /// The cost of a call with its arguments, and the size of its result.
    pub(super) fn overload_cost(
        &mut self,
        id: Id,
        function: &str,
        overload: &str,
        target: Option<&Argument>,
        args: &[Argument],
        costs: &[Estimate],
    ) -> CallCost {
        let sum = costs.iter().fold(Estimate::fixed(0), |sum, cost| sum.plus(*cost));
        let known = self
            .extension_cost(overload, target, args)
            .or_else(|| self.kubernetes_cost(function, overload, target, args))
            .or_else(|| self.text_cost(function, target, args))
            .or_else(|| self.net_cost(function, overload, args))
            .or_else(|| self.standard_cost(overload, target, args));
        if let Some((cost, size)) = known {
            return (cost.plus(sum), size);
        }
        match overload {
            "logical_and" | "logical_or" => {
                let min = costs.first().map_or(0, |first| first.min);
                (Estimate { min, max: sum.max }, None)
            }
            "conditional" => self.conditional_cost(id, args, costs),
            "add_string" | "add_bytes" | "add_list" => self.concatenation_cost(id, overload, args, sum),
            _ => (sum.plus(Estimate::fixed(1)), None),
        }
    }

    fn conditional_cost(&mut self, id: Id, args: &[Argument], costs: &[Estimate]) -> CallCost {
        let ([_, then, otherwise], [condition, then_cost, otherwise_cost]) = (args, costs) else {
            return (Estimate::fixed(1), None);
        };
        let size = self.arg_size(then).union(self.arg_size(otherwise));
        if let (Some(one), Some(two)) = (self.entry_sizes(then.id), self.entry_sizes(otherwise.id)) {
            self.entries.insert(id, one.union(two));
        }
        (condition.plus(then_cost.union(*otherwise_cost)), Some(size))
    }

    fn concatenation_cost(&mut self, id: Id, overload: &str, args: &[Argument], sum: Estimate) -> CallCost {
        let [one, two] = args else { return (sum.plus(Estimate::fixed(1)), None) };
        let size = own_size(one).plus(own_size(two));
        if let (Some(one), Some(two)) = (self.entry_sizes(one.id), self.entry_sizes(two.id)) {
            self.entries.insert(id, one.union(two));
        }
        let cost = if overload == "add_list" { Estimate::fixed(1) } else { size.scaled(TRAVERSAL) };
        (cost.plus(sum), Some(size))
    }

    /// The size of an argument; the largest where nothing is known.
    fn arg_size(&mut self, argument: &Argument) -> Estimate {
        own_size(argument)
    }

    /// The size of a list's elements, and whether it is known to be a list.
    fn element_size(&mut self, list: &Argument) -> Option<(Type, Estimate)> {
        let element = match &list.ty {
            Type::List(element) => (**element).clone(),
            Type::Map(key, _) => (**key).clone(),
            _ => return None,
        };
        let size = list.path.as_ref().and_then(|path| {
            let mut path = path.clone();
            path.push("@items".to_owned());
            self.sizes.size(&path)
        });
        Some((element, size.unwrap_or(Estimate::UNKNOWN)))
    }

    fn kubernetes_cost(
        &mut self,
        function: &str,
        overload: &str,
        target: Option<&Argument>,
        args: &[Argument],
    ) -> Option<CallCost> {
        match function {
            "check" => fixed(350_000),
            "serviceAccount" | "path" | "group" | "resource" | "subresource" | "namespace" | "name"
            | "allowed" | "reason" | "error" | "errored" | "format.named" | "sign" | "asInteger"
            | "isInteger" | "asApproximateFloat" | "isGreaterThan" | "isLessThan" | "compareTo" | "add"
            | "sub" | "major" | "minor" | "patch" | "getScheme" | "getHostname" | "getHost" | "getPort"
            | "getEscapedPath" | "getQuery" => fixed(1),
            "fieldSelector" | "labelSelector" => {
                let length = self.arg_size(args.first()?);
                let requirements = length.scaled(0.5).scaled(50.0);
                Some((Estimate::fixed(10).plus(length.scaled(TRAVERSAL)).plus(requirements), None))
            }
            "isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf" => {
                let target = target?;
                let size = self.arg_size(target);
                let Some((element, element_size)) = self.element_size(target) else {
                    return Some((size.scaled(TRAVERSAL), None));
                };
                let mut each = Estimate::fixed(1);
                if matches!(element, Type::String | Type::Bytes) {
                    each = each.plus(element_size.scaled(TRAVERSAL));
                }
                Some((size.times(each), None))
            }
            "quantity" | "isQuantity" | "semver" | "isSemver" => {
                Some((self.arg_size(args.first()?).scaled(TRAVERSAL), None))
            }
            "validate" => {
                let size = self.arg_size(args.first()?).scaled(TRAVERSAL);
                Some((size.scaled(FORMAT_PATTERN_MAX * REGEX), None))
            }
            "_==_" if overload == "equals" => equality_of_kubernetes_types(args),
            _ => None,
        }
    }

    fn text_cost(
        &mut self,
        function: &str,
        target: Option<&Argument>,
        args: &[Argument],
    ) -> Option<CallCost> {
        match function {
            "url" | "jsonpatch.escapeKey" => {
                let size = self.arg_size(args.first()?);
                Some((size.scaled(TRAVERSAL), Some(size)))
            }
            "lowerAscii" | "upperAscii" | "substring" | "trim" => {
                let size = self.arg_size(target?);
                Some((size.scaled(TRAVERSAL), Some(size)))
            }
            "replace" => {
                let size = self.arg_size(target?);
                let result = replaced(size, self.arg_size(args.first()?), self.arg_size(args.get(1)?));
                Some((size.scaled(2.0 * TRAVERSAL), Some(result)))
            }
            "split" => {
                let size = self.arg_size(target?);
                let limit = args.get(1).and_then(|limit| match self.checked.ast.kind(limit.id) {
                    Kind::Literal(Literal::Int(limit)) => Some(*limit as u64),
                    _ => None,
                });
                Some((size.scaled(2.0 * TRAVERSAL), Some(Estimate::up_to(limit.unwrap_or(size.max)))))
            }
            "join" => {
                let target = target?;
                let count = self.arg_size(target);
                let mut size = match self.element_size(target) {
                    Some((_, element)) => count.times(element),
                    None => Estimate::fixed(0),
                };
                if let Some(separator) = args.first() {
                    let separators =
                        Estimate { min: count.min.saturating_sub(1), max: count.max.saturating_sub(1) };
                    size = size.plus(self.arg_size(separator).times(separators));
                }
                Some((size.scaled(TRAVERSAL), Some(size)))
            }
            "find" | "findAll" => {
                let size = self.arg_size(target?);
                let text = size.plus(Estimate::fixed(1)).scaled(TRAVERSAL);
                let pattern = self.arg_size(args.first()?).scaled(REGEX);
                Some((text.times(pattern), Some(Estimate::up_to(size.max))))
            }
            _ => None,
        }
    }

    fn net_cost(&mut self, function: &str, overload: &str, args: &[Argument]) -> Option<CallCost> {
        match function {
            "ip" if overload == "cidr_ip" => fixed(1),
            "cidr" | "isIP" | "isCIDR" | "ip" => Some((self.arg_size(args.first()?).scaled(TRAVERSAL), None)),
            "ip.isCanonical" => Some((self.arg_size(args.first()?).scaled(2.0 * TRAVERSAL), None)),
            "masked"
            | "prefixLength"
            | "family"
            | "isUnspecified"
            | "isLoopback"
            | "isLinkLocalMulticast"
            | "isLinkLocalUnicast"
            | "isGlobalUnicast" => fixed(1),
            "containsIP" | "containsCIDR" => {
                let bytes = Estimate { min: 4, max: 16 };
                let mut cost = bytes.plus(bytes).scaled(TRAVERSAL);
                if function == "containsCIDR" {
                    cost = cost.plus(bytes.scaled(TRAVERSAL)).plus(Estimate::fixed(1));
                }
                if matches!(overload, "cidr_contains_ip_string" | "cidr_contains_cidr_string") {
                    cost = cost.plus(self.arg_size(args.first()?).scaled(TRAVERSAL));
                }
                Some((cost, None))
            }
            _ => None,
        }
    }

    fn standard_cost(
        &mut self,
        overload: &str,
        target: Option<&Argument>,
        args: &[Argument],
    ) -> Option<CallCost> {
        match overload {
            "string_format" => Some((own_size(target?).scaled(TRAVERSAL), None)),
            "string_to_bytes" => {
                let size = own_size(args.first()?);
                let result = Estimate { min: size.min, max: size.max.wrapping_mul(4) };
                Some((size.scaled(TRAVERSAL), Some(result)))
            }
            "bytes_to_string" => {
                let size = own_size(args.first()?);
                Some((size.scaled(TRAVERSAL), Some(Estimate { min: size.min / 4, max: size.max })))
            }
            "strings_quote" => {
                let size = own_size(args.first()?);
                let result = Estimate {
                    min: size.min.saturating_add(2),
                    max: size.max.saturating_mul(2).saturating_add(2),
                };
                Some((size.scaled(TRAVERSAL), Some(result)))
            }
            "starts_with_string" | "ends_with_string" => {
                Some((own_size(args.first()?).scaled(TRAVERSAL), None))
            }
            "in_list" => Some((own_size(args.get(1)?), None)),
            "matches_string" => {
                let text = own_size(target?).plus(Estimate::fixed(1)).scaled(TRAVERSAL);
                Some((text.times(own_size(args.first()?).scaled(REGEX)), None))
            }
            "contains_string" => {
                let text = own_size(target?).scaled(TRAVERSAL);
                Some((text.times(own_size(args.first()?).scaled(TRAVERSAL)), None))
            }
            "less_string"
            | "greater_string"
            | "less_equals_string"
            | "greater_equals_string"
            | "less_bytes"
            | "greater_bytes"
            | "less_equals_bytes"
            | "greater_equals_bytes"
            | "equals"
            | "not_equals" => {
                let max = own_size(args.first()?).max.min(own_size(args.get(1)?).max);
                Some((Estimate { min: u64::from(max > 0), max }.scaled(TRAVERSAL), None))
            }
            _ => None,
        }
    }

    /// Lists and sets of the extension libraries.
    fn extension_cost(
        &mut self,
        overload: &str,
        target: Option<&Argument>,
        args: &[Argument],
    ) -> Option<CallCost> {
        let call =
            |factor: f64, size: Estimate| Some((size.scaled(factor).plus(Estimate::fixed(11)), Some(size)));
        match overload {
            "list_sets_contains_list" | "list_sets_intersects_list" | "list_sets_equivalent_list" => {
                let factor = if overload == "list_sets_equivalent_list" { 2.0 } else { 1.0 };
                let product = self.arg_size(args.first()?).times(self.arg_size(args.get(1)?));
                Some((product.scaled(factor).plus(Estimate::fixed(1)), None))
            }
            "list_slice" => {
                let size = self.arg_size(target?);
                let bound = |index: usize| args.get(index).and_then(|arg| self.whole(arg.id));
                let start = bound(0).unwrap_or(0);
                let end = bound(1).unwrap_or(size.max);
                call(1.0, Estimate::fixed(end.saturating_sub(start)))
            }
            "list_flatten" => call(1.0, self.arg_size(target?)),
            "list_flatten_int" => {
                let depth = self.whole(args.first()?.id).unwrap_or(u64::MAX);
                call(depth as f64, self.arg_size(target?))
            }
            "lists_range" => {
                let count = self.whole(args.first()?.id).unwrap_or(u64::MAX);
                call(1.0, Estimate::fixed(count))
            }
            "list_reverse" => call(1.0, self.arg_size(target?)),
            "list_distinct" => {
                let size = self.arg_size(target?);
                call(2.0, size.times(size))
            }
            sort if sort.ends_with("_sort") || sort.ends_with("_sortByAssociatedKeys") => {
                let keys = if sort.ends_with("_sort") { target? } else { args.first()? };
                let size = self.arg_size(keys);
                let texts = sort.starts_with("list_string_") || sort.starts_with("list_bytes_");
                call(if texts { 2.0 + TRAVERSAL } else { 2.0 }, size.times(size))
            }
            _ => None,
        }
    }

    /// The value of a whole number that stands in the source.
    fn whole(&self, id: Id) -> Option<u64> {
        match self.checked.ast.kind(id) {
            Kind::Literal(Literal::Int(value)) => Some(u64::try_from(*value).unwrap_or(0)),
            _ => None,
        }
    }
}

fn own_size(argument: &Argument) -> Estimate {
    argument.size.unwrap_or(Estimate::UNKNOWN)
}

fn equality_of_kubernetes_types(args: &[Argument]) -> Option<CallCost> {
    let [one, two] = args else { return None };
    if one.ty != two.ty {
        return None;
    }
    match &one.ty {
        Type::Opaque(name, _) if matches!(&**name, "net.IP" | "net.CIDR") => fixed(1),
        Type::Object(name) => match &**name {
            "kubernetes.NamedFormat" => Some((Estimate { min: 1, max: FORMAT_MAX }.scaled(TRAVERSAL), None)),
            "kubernetes.URL" => {
                let size = two.size.map_or(Estimate::fixed(1), |size| size.union(size));
                Some((Estimate { min: 1, max: size.max }.scaled(TRAVERSAL), None))
            }
            name if name.starts_with("kubernetes.") => fixed(1),
            _ => None,
        },
        _ => None,
    }
}

/// The length of a text after its parts were replaced.
fn replaced(text: Estimate, old: Estimate, new: Estimate) -> Estimate {
    let (mut count, mut kept) = (Estimate::fixed(0), Estimate::fixed(0));
    if old.min == 0 {
        count.max = text.max.saturating_add(1);
        kept.max = text.max;
    } else if new.max <= old.min {
        kept.max = text.max;
    } else {
        count.max = (text.max as f64 / old.min as f64).ceil() as u64;
    }
    if old.max == 0 {
        count.min = text.min.saturating_add(1);
        kept.min = text.min;
    } else if old.max <= new.min {
        kept.min = text.min;
    } else {
        count.min = (text.min as f64 / old.max as f64).ceil() as u64;
    }
    count.times(new).plus(kept)
}
