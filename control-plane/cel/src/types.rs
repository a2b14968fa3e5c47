//! Types of expressions, how they print, and which may stand for which (unification with type parameters).

use std::{collections::HashMap, fmt, sync::Arc};

/// A name that many nodes share.
pub type Name = Arc<str>;

/// The type of an expression or a value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Type {
    /// Anything; checked when evaluated.
    Dyn,
    /// What has a type error already reported.
    Error,
    Null,
    Bool,
    Int,
    Uint,
    Double,
    String,
    Bytes,
    Timestamp,
    Duration,
    List(Arc<Type>),
    Map(Arc<Type>, Arc<Type>),
    /// A message with fields that a [`TypeProvider`] knows.
    Object(Name),
    /// A type without fields, perhaps with parameters.
    Opaque(Name, Arc<[Type]>),
    /// The type of a type.
    Type(Option<Arc<Type>>),
    /// A type parameter.
    Param(Name),
}

/// What knows the fields of [`Type::Object`].
pub trait TypeProvider: Send + Sync {
    /// Whether objects of this name exist, and may be constructed with `name{...}`.
    fn has_type(&self, object: &str) -> bool;
    /// The type of a field, `None` where the object has no such field.
    fn field(&self, object: &str, field: &str) -> Option<Type>;
}

/// Knows no objects.
pub struct NoTypes;

impl TypeProvider for NoTypes {
    fn has_type(&self, _object: &str) -> bool {
        false
    }

    fn field(&self, _object: &str, _field: &str) -> Option<Type> {
        None
    }
}

impl Type {
    pub fn list(element: Self) -> Self {
        Self::List(Arc::new(element))
    }

    pub fn map(key: Self, value: Self) -> Self {
        Self::Map(Arc::new(key), Arc::new(value))
    }

    pub fn object(name: &str) -> Self {
        Self::Object(name.into())
    }

    pub fn opaque(name: &str) -> Self {
        Self::Opaque(name.into(), Arc::new([]))
    }

    pub fn optional(inner: Self) -> Self {
        Self::Opaque("optional_type".into(), Arc::new([inner]))
    }

    pub(crate) fn param(name: &str) -> Self {
        Self::Param(name.into())
    }

    /// What an optional holds.
    pub(crate) fn unwrap_optional(&self) -> Option<&Self> {
        match self {
            Self::Opaque(name, params) if &**name == "optional_type" => params.first(),
            _ => None,
        }
    }

    pub(crate) fn is_dyn_or_error(&self) -> bool {
        matches!(self, Self::Dyn | Self::Error)
    }

    /// Whether values may be null although the type does not say so: all that is no primitive.
    fn nullable(&self) -> bool {
        matches!(self, Self::Opaque(..) | Self::Object(_) | Self::Duration | Self::Timestamp | Self::Null)
    }

    /// Whether the size of every value is one.
    pub(crate) fn is_scalar(&self) -> bool {
        match self {
            Self::Bool | Self::Double | Self::Duration | Self::Int | Self::Timestamp | Self::Uint => true,
            other => other.unwrap_optional().is_some_and(Self::is_scalar),
        }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dyn => f.write_str("dyn"),
            Self::Error => f.write_str("!error!"),
            Self::Null => f.write_str("null"),
            Self::Bool => f.write_str("bool"),
            Self::Int => f.write_str("int"),
            Self::Uint => f.write_str("uint"),
            Self::Double => f.write_str("double"),
            Self::String => f.write_str("string"),
            Self::Bytes => f.write_str("bytes"),
            Self::Timestamp => f.write_str("timestamp"),
            Self::Duration => f.write_str("duration"),
            Self::List(element) => write!(f, "list({element})"),
            Self::Map(key, value) => write!(f, "map({key}, {value})"),
            Self::Object(name) | Self::Param(name) => f.write_str(name),
            Self::Type(None) => f.write_str("type"),
            Self::Type(Some(of)) => write!(f, "type({of})"),
            Self::Opaque(name, params) if params.is_empty() => f.write_str(name),
            Self::Opaque(name, params) => {
                let params: Vec<String> = params.iter().map(Self::to_string).collect();
                write!(f, "{name}({})", params.join(", "))
            }
        }
    }
}

/// Prints the arguments of a call as in `(int, string)` or `string.(int)`.
pub(crate) fn signature(args: &[Type], member: bool) -> String {
    let (target, args) = match args.split_first() {
        Some((target, rest)) if member => (format!("{target}."), rest),
        _ => (String::new(), args),
    };
    let args: Vec<String> = args.iter().map(Type::to_string).collect();
    format!("{target}({})", args.join(", "))
}

/// What is known about type parameters.
#[derive(Clone, Debug, Default)]
pub(crate) struct Substitutions {
    by_param: HashMap<Name, Type>,
    next: usize,
}

impl Substitutions {
    /// A parameter that nothing else uses.
    pub fn fresh(&mut self) -> Type {
        self.next += 1;
        Type::param(&format!("_var{}", self.next - 1))
    }

    /// Whether all pairs may be assigned; only then what was learned stays.
    pub fn assign_all(&mut self, to: &[Type], from: &[Type]) -> bool {
        if to.len() != from.len() {
            return false;
        }
        let before = self.by_param.clone();
        let assigned = to.iter().zip(from).all(|(to, from)| self.assign(to, from));
        if !assigned {
            self.by_param = before;
        }
        assigned
    }

    /// Whether one type may be assigned to the other; only then what was learned stays.
    pub fn try_assign(&mut self, to: &Type, from: &Type) -> bool {
        self.assign_all(std::slice::from_ref(to), std::slice::from_ref(from))
    }

    fn assign(&mut self, one: &Type, two: &Type) -> bool {
        if let Type::Param(_) = two {
            let (valid, known) = self.bind(one, two);
            if valid || known {
                return valid;
            }
        }
        if let Type::Param(_) = one {
            return self.bind(two, one).0;
        }
        match (one, two) {
            (one, two) if one.is_dyn_or_error() || two.is_dyn_or_error() => true,
            (Type::Null, other) | (other, Type::Null) => other.nullable(),
            (Type::Type(_), Type::Type(_)) => true,
            (Type::List(one), Type::List(two)) => self.assign(one, two),
            (Type::Map(key, value), Type::Map(key_two, value_two)) => {
                self.assign(key, key_two) && self.assign(value, value_two)
            }
            (Type::Opaque(name, params), Type::Opaque(name_two, params_two)) => {
                name == name_two
                    && params.len() == params_two.len()
                    && params.iter().zip(params_two.iter()).all(|(one, two)| self.assign(one, two))
            }
            (one, two) => one == two,
        }
    }

    /// Whether a parameter may stand for a type, and whether it stood for something before.
    fn bind(&mut self, ty: &Type, param: &Type) -> (bool, bool) {
        if ty == param {
            return (true, true);
        }
        let Type::Param(name) = param else { return (false, false) };
        if let Some(known) = self.by_param.get(name).cloned() {
            if *ty == known {
                return (true, true);
            }
            if !self.assign(ty, &known) {
                return (false, true);
            }
            let general = most_general(ty, &known).clone();
            if !self.occurs(param, &general) {
                self.by_param.insert(name.clone(), general);
            }
            return (true, true);
        }
        if self.occurs(param, ty) {
            return (false, false);
        }
        self.by_param.insert(name.clone(), ty.clone());
        (true, false)
    }

    fn occurs(&self, param: &Type, within: &Type) -> bool {
        if param == within {
            return true;
        }
        match within {
            Type::Param(name) => self.by_param.get(name).is_some_and(|known| self.occurs(param, known)),
            Type::List(element) => self.occurs(param, element),
            Type::Map(key, value) => self.occurs(param, key) || self.occurs(param, value),
            Type::Opaque(_, params) => params.iter().any(|inner| self.occurs(param, inner)),
            Type::Type(Some(of)) => self.occurs(param, of),
            _ => false,
        }
    }

    /// The type with every known parameter replaced, and the unknown ones by dyn where `to_dyn` says so.
    pub fn apply(&self, ty: &Type, to_dyn: bool) -> Type {
        match ty {
            Type::Param(name) => match self.by_param.get(name) {
                Some(known) => self.apply(known, to_dyn),
                None if to_dyn => Type::Dyn,
                None => ty.clone(),
            },
            Type::List(element) => Type::list(self.apply(element, to_dyn)),
            Type::Map(key, value) => Type::map(self.apply(key, to_dyn), self.apply(value, to_dyn)),
            Type::Opaque(name, params) if !params.is_empty() => {
                Type::Opaque(name.clone(), params.iter().map(|param| self.apply(param, to_dyn)).collect())
            }
            Type::Type(Some(of)) => Type::Type(Some(Arc::new(self.apply(of, to_dyn)))),
            other => other.clone(),
        }
    }
}

/// The more general of two types that unify.
pub(crate) fn most_general<'a>(one: &'a Type, two: &'a Type) -> &'a Type {
    if less_specific(one, two) { one } else { two }
}

fn less_specific(one: &Type, two: &Type) -> bool {
    match (one, two) {
        (Type::Dyn | Type::Param(_), _) => true,
        (_, Type::Dyn | Type::Param(_)) => false,
        (Type::List(one), Type::List(two)) => less_specific(one, two),
        (Type::Map(key, value), Type::Map(key_two, value_two)) => {
            less_specific(key, key_two) && less_specific(value, value_two)
        }
        (Type::Opaque(name, params), Type::Opaque(name_two, params_two)) => {
            name == name_two
                && params.len() == params_two.len()
                && params.iter().zip(params_two.iter()).all(|(one, two)| less_specific(one, two))
        }
        (Type::Type(_), Type::Type(_)) => true,
        (one, two) => one == two,
    }
}
