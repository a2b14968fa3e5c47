//! Signatures as text: `(int, int) -> int`, or `string.(string) -> bool` for what is called on a target.
//! Single capital letters are type parameters.

use super::Overload;
use crate::types::Type;

/// Panics on a malformed signature: all of them are constants of this crate, and a test reads every one.
pub(super) fn parse(id: &'static str, text: &str) -> Overload {
    let mut reader = Reader { text, id };
    let target = if reader.text.starts_with('(') {
        None
    } else {
        let target = reader.ty();
        reader.expect('.');
        Some(target)
    };
    reader.expect('(');
    let mut args: Vec<Type> = target.iter().cloned().collect();
    while !reader.accept(')') {
        args.push(reader.ty());
        reader.accept(',');
    }
    reader.expect('-');
    reader.expect('>');
    let result = reader.ty();
    let generic = args.iter().chain([&result]).any(has_param);
    Overload { id, member: target.is_some(), args, result, generic }
}

fn has_param(ty: &Type) -> bool {
    match ty {
        Type::Param(_) => true,
        Type::List(element) => has_param(element),
        Type::Map(key, value) => has_param(key) || has_param(value),
        Type::Opaque(_, params) => params.iter().any(has_param),
        Type::Type(Some(of)) => has_param(of),
        _ => false,
    }
}

struct Reader<'t> {
    text: &'t str,
    id: &'static str,
}

impl Reader<'_> {
    fn accept(&mut self, symbol: char) -> bool {
        self.text = self.text.trim_start();
        match self.text.strip_prefix(symbol) {
            Some(rest) => {
                self.text = rest;
                true
            }
            None => false,
        }
    }

    fn expect(&mut self, symbol: char) {
        assert!(self.accept(symbol), "signature of {}: {symbol} is missing before {}", self.id, self.text);
    }

    fn ty(&mut self) -> Type {
        self.text = self.text.trim_start();
        let end = self.text.find(|letter: char| !letter.is_alphanumeric()).unwrap_or(self.text.len());
        let (name, rest) = self.text.split_at(end);
        self.text = rest;
        let mut params = Vec::new();
        if matches!(name, "list" | "map" | "type" | "opt") {
            self.expect('(');
            while !self.accept(')') {
                params.push(self.ty());
                self.accept(',');
            }
        }
        let mut params = params.into_iter();
        let mut param = || params.next().unwrap_or(Type::Dyn);
        match name {
            "list" => Type::list(param()),
            "map" => Type::map(param(), param()),
            "type" => Type::Type(Some(std::sync::Arc::new(param()))),
            "opt" => Type::optional(param()),
            "dyn" => Type::Dyn,
            "bool" => Type::Bool,
            "int" => Type::Int,
            "uint" => Type::Uint,
            "double" => Type::Double,
            "string" => Type::String,
            "bytes" => Type::Bytes,
            "timestamp" => Type::Timestamp,
            "duration" => Type::Duration,
            "ip" => Type::opaque("net.IP"),
            "cidr" => Type::opaque("net.CIDR"),
            "url" => Type::object("kubernetes.URL"),
            "quantity" => Type::object("kubernetes.Quantity"),
            "semver" => Type::object("kubernetes.Semver"),
            "format" => Type::object("kubernetes.NamedFormat"),
            "authorizer" => Type::object("kubernetes.authorization.Authorizer"),
            "path" => Type::object("kubernetes.authorization.PathCheck"),
            "group" => Type::object("kubernetes.authorization.GroupCheck"),
            "resource" => Type::object("kubernetes.authorization.ResourceCheck"),
            "decision" => Type::object("kubernetes.authorization.Decision"),
            param if param.len() == 1 => Type::param(param),
            other => panic!("signature of {}: no type {other}", self.id),
        }
    }
}
