//! Macros: calls that are loops in disguise.

use super::{Parsed, Parser};
use crate::{
    ast::{ACCUMULATOR, Comprehension, Element, Id, Kind, Literal},
    types::Name,
};

const UNUSED: &str = "#unused";
const SORT_INPUT: &str = "@__sortBy_input__";

/// The variables of a loop.
struct Vars {
    var: Name,
    var2: Option<Name>,
}

impl Parser<'_> {
    /// The expansion, or `None` where the call is no macro.
    pub(super) fn expand(
        &mut self,
        function: &str,
        target: Option<Id>,
        args: &[Id],
        offset: usize,
    ) -> Parsed<Option<Id>> {
        let Some(range) = target else {
            return match (function, args) {
                ("has", [arg]) => self.has(*arg, offset).map(Some),
                _ => Ok(None),
            };
        };
        match (function, args) {
            ("all" | "exists" | "exists_one" | "existsOne", [_, body])
            | ("all" | "exists" | "exists_one" | "existsOne", [_, _, body]) => {
                let kind = if function == "existsOne" { "exists_one" } else { function };
                self.quantifier(kind, range, &args[..args.len() - 1], *body, offset)
            }
            ("map", [var, body]) => self.collect(range, &[*var], None, *body, offset),
            ("map", [var, filter, body]) => self.collect(range, &[*var], Some(*filter), *body, offset),
            ("filter", [var, filter]) => self.collect(range, &[*var], Some(*filter), *var, offset),
            ("transformList", [var, var2, body]) => self.collect(range, &[*var, *var2], None, *body, offset),
            ("transformList", [var, var2, filter, body]) => {
                self.collect(range, &[*var, *var2], Some(*filter), *body, offset)
            }
            ("transformMap" | "transformMapEntry", [var, var2, body]) => {
                self.transform_map(function, range, &[*var, *var2], None, *body, offset)
            }
            ("transformMap" | "transformMapEntry", [var, var2, filter, body]) => {
                self.transform_map(function, range, &[*var, *var2], Some(*filter), *body, offset)
            }
            ("optMap" | "optFlatMap", [var, body]) => self.optional_map(function, range, *var, *body, offset),
            ("sortBy", [var, body]) => self.sort_by(range, *var, *body, offset),
            _ => return Ok(None),
        }
        .map(Some)
    }

    /// Reports a misused macro; parsing goes on, so that all are found.
    fn misused(&mut self, at: Id, message: &str) -> Parsed {
        let offset = self.ast.offset(at);
        self.issues.report(Some(offset), message);
        Ok(at)
    }

    fn has(&mut self, arg: Id, offset: usize) -> Parsed {
        let Kind::Select { operand, field, test: false } = self.ast.kind(arg).clone() else {
            return self.misused(arg, "invalid argument to has() macro");
        };
        self.push(Kind::Select { operand, field, test: true }, offset)
    }

    /// The loop's variables, or the argument to blame and why.
    fn vars(&self, args: &[Id], wrong: &'static str) -> Result<Vars, (Id, &'static str)> {
        let mut names = Vec::with_capacity(2);
        for arg in args {
            let Kind::Ident(name) = self.ast.kind(*arg) else { return Err((*arg, wrong)) };
            if &**name == ACCUMULATOR || &**name == "__result__" {
                return Err((*arg, "iteration variable overwrites accumulator variable"));
            }
            if names.contains(name) {
                return Err((*arg, "duplicate variable name"));
            }
            names.push(name.clone());
        }
        let mut names = names.into_iter();
        let var = names.next().ok_or((0, wrong))?;
        Ok(Vars { var, var2: names.next() })
    }

    fn ident(&mut self, name: &str, offset: usize) -> Parsed {
        self.push(Kind::Ident(name.into()), offset)
    }

    fn value(&mut self, literal: Literal, offset: usize) -> Parsed {
        self.push(Kind::Literal(literal), offset)
    }

    fn quantifier(&mut self, kind: &str, range: Id, vars: &[Id], body: Id, offset: usize) -> Parsed {
        let Vars { var, var2 } = match self.vars(vars, "argument must be a simple name") {
            Ok(vars) => vars,
            Err((at, message)) => return self.misused(at, message),
        };
        let accu = self.ident(ACCUMULATOR, offset)?;
        let result = self.ident(ACCUMULATOR, offset)?;
        let condition_accu = self.ident(ACCUMULATOR, offset)?;
        let (init, condition, step, result) = match kind {
            "all" => {
                let condition = self.call("@not_strictly_false", vec![condition_accu], offset)?;
                let step = self.call("_&&_", vec![accu, body], offset)?;
                (Literal::Bool(true), condition, step, result)
            }
            "exists" => {
                let not = self.call("!_", vec![condition_accu], offset)?;
                let condition = self.call("@not_strictly_false", vec![not], offset)?;
                let step = self.call("_||_", vec![accu, body], offset)?;
                (Literal::Bool(false), condition, step, result)
            }
            _ => {
                let one = self.value(Literal::Int(1), offset)?;
                let more = self.call("_+_", vec![accu, one], offset)?;
                let step = self.call("_?:_", vec![body, more, condition_accu], offset)?;
                let exactly = self.value(Literal::Int(1), offset)?;
                let result = self.call("_==_", vec![result, exactly], offset)?;
                (Literal::Int(0), self.value(Literal::Bool(true), offset)?, step, result)
            }
        };
        let init = self.value(init, offset)?;
        self.comprehension(
            Comprehension { range, var, var2, accu: ACCUMULATOR.into(), init, condition, step, result },
            offset,
        )
    }

    fn comprehension(&mut self, comprehension: Comprehension, offset: usize) -> Parsed {
        self.push(Kind::Comprehension(Box::new(comprehension)), offset)
    }

    /// A loop that gathers what `step` makes of each element, where the filter lets it.
    fn gather(
        &mut self,
        range: Id,
        vars: Vars,
        init: Kind,
        step: Id,
        filter: Option<Id>,
        offset: usize,
    ) -> Parsed {
        let step = match filter {
            None => step,
            Some(filter) => {
                let accu = self.ident(ACCUMULATOR, offset)?;
                self.call("_?:_", vec![filter, step, accu], offset)?
            }
        };
        let init = self.push(init, offset)?;
        let condition = self.value(Literal::Bool(true), offset)?;
        let result = self.ident(ACCUMULATOR, offset)?;
        let Vars { var, var2 } = vars;
        self.comprehension(
            Comprehension { range, var, var2, accu: ACCUMULATOR.into(), init, condition, step, result },
            offset,
        )
    }

    fn collect(&mut self, range: Id, vars: &[Id], filter: Option<Id>, body: Id, offset: usize) -> Parsed {
        let vars = match self.vars(vars, "argument is not an identifier") {
            Ok(vars) => vars,
            Err((at, message)) => return self.misused(at, message),
        };
        let accu = self.ident(ACCUMULATOR, offset)?;
        let list = self.push(Kind::List(vec![Element { value: body, optional: false }]), offset)?;
        let step = self.call("_+_", vec![accu, list], offset)?;
        self.gather(range, vars, Kind::List(Vec::new()), step, filter, offset)
    }

    fn transform_map(
        &mut self,
        function: &str,
        range: Id,
        vars: &[Id],
        filter: Option<Id>,
        body: Id,
        offset: usize,
    ) -> Parsed {
        let key = vars[0];
        let vars = match self.vars(vars, "argument must be a simple name") {
            Ok(vars) => vars,
            Err((at, message)) => return self.misused(at, message),
        };
        let accu = self.ident(ACCUMULATOR, offset)?;
        let args = if function == "transformMap" { vec![accu, key, body] } else { vec![accu, body] };
        let step = self.call("cel.@mapInsert", args, offset)?;
        self.gather(range, vars, Kind::Map(Vec::new()), step, filter, offset)
    }

    /// Gives a name to a value within a body.
    fn bind(&mut self, name: Name, value: Id, body: Id, offset: usize) -> Parsed {
        let range = self.push(Kind::List(Vec::new()), offset)?;
        let condition = self.value(Literal::Bool(false), offset)?;
        let step = self.ident(&name, offset)?;
        let bind = Comprehension {
            range,
            var: UNUSED.into(),
            var2: None,
            accu: name,
            init: value,
            condition,
            step,
            result: body,
        };
        self.comprehension(bind, offset)
    }

    fn optional_map(&mut self, function: &str, target: Id, var: Id, body: Id, offset: usize) -> Parsed {
        let vars = match self.vars(&[var], "optMap() variable name must be a simple identifier") {
            Ok(vars) => vars,
            Err((at, _)) => {
                return self.misused(at, &format!("{function}() variable name must be a simple identifier"));
            }
        };
        let again = self.copy(target)?;
        let has = self.member_call("hasValue", target, Vec::new(), offset)?;
        let value = self.member_call("value", again, Vec::new(), offset)?;
        let bound = self.bind(vars.var, value, body, offset)?;
        let then = if function == "optMap" { self.call("optional.of", vec![bound], offset)? } else { bound };
        let none = self.call("optional.none", Vec::new(), offset)?;
        self.call("_?:_", vec![has, then, none], offset)
    }

    fn member_call(&mut self, function: &str, target: Id, args: Vec<Id>, offset: usize) -> Parsed {
        self.push(Kind::Call { function: function.into(), target: Some(target), args }, offset)
    }

    fn sort_by(&mut self, target: Id, var: Id, body: Id, offset: usize) -> Parsed {
        let sortable = matches!(
            self.ast.kind(target),
            Kind::List(_) | Kind::Select { .. } | Kind::Ident(_) | Kind::Comprehension(_) | Kind::Call { .. }
        );
        if !sortable {
            let message =
                "sortBy can only be applied to a list, identifier, comprehension, call or select expression";
            return self.misused(target, message);
        }
        let input = self.ident(SORT_INPUT, offset)?;
        let keys = self.collect(input, &[var], None, body, offset)?;
        let input = self.ident(SORT_INPUT, offset)?;
        let sorted = self.member_call("@sortByAssociatedKeys", input, vec![keys], offset)?;
        self.bind(SORT_INPUT.into(), target, sorted, offset)
    }

    /// A second copy of an expression, so that each stands for one evaluation.
    fn copy(&mut self, id: Id) -> Parsed {
        let mut kind = self.ast.kind(id).clone();
        let offset = self.ast.offset(id);
        match &mut kind {
            Kind::Literal(_) | Kind::Ident(_) => {}
            Kind::Select { operand, .. } => *operand = self.copy(*operand)?,
            Kind::Call { target, args, .. } => {
                for inner in target.iter_mut().chain(args) {
                    *inner = self.copy(*inner)?;
                }
            }
            Kind::List(elements) => {
                for element in elements {
                    element.value = self.copy(element.value)?;
                }
            }
            Kind::Map(entries) => {
                for entry in entries {
                    entry.key = self.copy(entry.key)?;
                    entry.value = self.copy(entry.value)?;
                }
            }
            Kind::Struct { fields, .. } => {
                for field in fields {
                    field.value = self.copy(field.value)?;
                }
            }
            Kind::Comprehension(inner) => {
                let Comprehension { range, init, condition, step, result, .. } = &mut **inner;
                for part in [range, init, condition, step, result] {
                    *part = self.copy(*part)?;
                }
            }
        }
        self.push(kind, offset)
    }
}
