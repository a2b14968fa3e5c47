//! The evaluator: walks a plan, counts what it costs, lets logical operators absorb errors.

use std::sync::Arc;

use crate::{
    cost,
    error::EvalError,
    functions::{lists, regex, standard_element, standard_missing},
    program::{Activation, Bind, Call, Fold, Mode, Step},
    types::Name,
    value::{List, Map, Object, OwnedMap, Val},
};

type Result<'a> = std::result::Result<Val<'a>, EvalError>;

const LIST_COST: u64 = 10;
const MAP_COST: u64 = 30;
const STRUCT_COST: u64 = 40;
/// Turns of loops for each unit of the cost limit; some turns cost nothing.
const TURNS_PER_COST: u64 = 4;

pub(crate) struct Evaluator<'e, 'a> {
    activation: &'e dyn Activation<'a>,
    slots: Vec<Result<'a>>,
    cost: u64,
    cost_max: u64,
    turns: u64,
}

impl<'e, 'a> Evaluator<'e, 'a> {
    pub fn new(activation: &'e dyn Activation<'a>, slots: usize, cost_max: u64) -> Self {
        Self { activation, slots: vec![Ok(Val::Null); slots], cost: 0, cost_max, turns: 0 }
    }

    pub fn cost(&self) -> u64 {
        self.cost
    }

    fn charge(&mut self, cost: u64) -> std::result::Result<(), EvalError> {
        self.cost = self.cost.saturating_add(cost);
        if self.cost > self.cost_max { Err(EvalError::CostLimit) } else { Ok(()) }
    }

    pub fn eval(&mut self, step: &Step) -> Result<'a> {
        match step {
            Step::Const(value) => Ok(value.clone()),
            Step::Slot(slot) => {
                self.charge(1)?;
                self.slots[*slot].clone()
            }
            Step::Variable { name, cost } => self.variable(name, *cost),
            Step::Select { operand, field, mode, cost } => self.select(operand, field, *mode, *cost),
            Step::Index { parts, optional, cost } => self.index(parts, *optional, *cost),
            Step::Call(call) => self.call(call),
            Step::And(terms) => self.logical(terms, false),
            Step::Or(terms) => self.logical(terms, true),
            Step::Conditional(parts, discounts) => self.conditional(parts, discounts),
            Step::Equal(parts, equal) => self.equal(parts, *equal),
            Step::Fold(fold) => self.fold(fold),
            other => self.eval_rare(other),
        }
    }

    /// Apart from `eval`, so that the frames of deep recursion stay small.
    #[inline(never)]
    fn eval_rare(&mut self, step: &Step) -> Result<'a> {
        match step {
            Step::NotStrictlyFalse(inner) => self.not_strictly_false(inner),
            Step::InSet(item, set) => {
                let item = self.eval(item)?;
                Ok(Val::Bool(set.iter().any(|other| other.equals(&item))))
            }
            Step::OrElse(parts, unwrap) => self.or_else(parts, *unwrap),
            Step::List(items) => self.list(items),
            Step::Map(entries) => self.map(entries),
            Step::Struct(name, fields) => self.object(name, fields),
            Step::Bind(bind) => self.bind(bind),
            Step::Append(slot, list) => self.append(*slot, list),
            Step::Insert(slot, args) => self.insert(*slot, args),
            _ => Err(EvalError::no_such_overload()),
        }
    }

    #[inline(never)]
    fn variable(&mut self, name: &Name, cost: u64) -> Result<'a> {
        self.charge(cost)?;
        match self.activation.resolve(name)? {
            Some(value) => Ok(value),
            None => Err(EvalError::new(format!("no such attribute(s): {name}"))),
        }
    }

    #[inline(never)]
    fn select(&mut self, operand: &Step, field: &Name, mode: Mode, cost: u64) -> Result<'a> {
        let operand = self.eval(operand)?;
        self.charge(cost)?;
        let (operand, optional) = match operand {
            Val::Optional(None) => {
                return Ok(if mode == Mode::Test { Val::Bool(false) } else { Val::Optional(None) });
            }
            Val::Optional(Some(inner)) => ((*inner).clone(), true),
            other => (other, false),
        };
        let found = operand.field(field)?;
        match (mode, found) {
            (Mode::Test, found) => Ok(Val::Bool(found.is_some())),
            (Mode::Get, Some(value)) if !optional => Ok(value),
            (Mode::Get, None) if !optional => Err(EvalError::new(format!("no such key: {field}"))),
            (Mode::Get | Mode::Optional, found) => {
                if found.is_some() && mode == Mode::Optional {
                    self.charge(1)?;
                }
                Ok(Val::Optional(found.map(Arc::new)))
            }
        }
    }

    #[inline(never)]
    fn index(&mut self, parts: &[Step; 2], optional: bool, cost: u64) -> Result<'a> {
        let container = self.eval(&parts[0])?;
        let key = self.eval(&parts[1])?;
        self.charge(cost)?;
        let (container, wrapped) = match container {
            Val::Optional(None) => return Ok(Val::Optional(None)),
            Val::Optional(Some(inner)) => ((*inner).clone(), true),
            other => (other, false),
        };
        let found = standard_element(&container, &key)?;
        if optional || wrapped {
            return Ok(Val::Optional(found.map(Arc::new)));
        }
        found.ok_or_else(|| standard_missing(&container, &key))
    }

    #[inline(never)]
    fn call(&mut self, call: &Call) -> Result<'a> {
        let mut args = Vec::with_capacity(call.args.len());
        for arg in &call.args {
            args.push(self.eval(arg)?);
        }
        let name = call.function.name;
        if let Some(known) = cost::before(name, &args) {
            self.charge(known)?;
        }
        let result = match &call.pattern {
            Some(pattern) => regex::run(name, pattern, &args),
            None => (call.function.implementation)(name, &args),
        }?;
        self.charge(cost::after(name, &args, &result))?;
        Ok(result)
    }

    /// `&&` and `||`: the deciding value wins over errors, wherever it stands.
    #[inline(never)]
    fn logical(&mut self, terms: &[Step], deciding: bool) -> Result<'a> {
        let mut error = None;
        for term in terms {
            match self.eval(term) {
                Ok(Val::Bool(value)) if value == deciding => return Ok(Val::Bool(deciding)),
                Ok(Val::Bool(_)) => {}
                Ok(_) => error = error.or_else(|| Some(EvalError::no_such_overload())),
                Err(found) if !found.absorbable() => return Err(found),
                Err(found) => error = error.or(Some(found)),
            }
        }
        error.map_or(Ok(Val::Bool(!deciding)), Err)
    }

    #[inline(never)]
    fn conditional(&mut self, parts: &[Step; 3], discounts: &[u64; 2]) -> Result<'a> {
        let [condition, then, otherwise] = parts;
        let (branch, discount) = match self.eval(condition)? {
            Val::Bool(true) => (then, discounts[0]),
            Val::Bool(false) => (otherwise, discounts[1]),
            _ => return Err(EvalError::no_such_overload()),
        };
        let before = self.cost;
        let result = self.eval(branch);
        self.cost = self.cost.saturating_sub(discount).max(before);
        result
    }

    #[inline(never)]
    fn equal(&mut self, parts: &[Step; 2], equal: bool) -> Result<'a> {
        let one = self.eval(&parts[0])?;
        let two = self.eval(&parts[1])?;
        self.charge(cost::equality(&one, &two))?;
        Ok(Val::Bool(one.equals(&two) == equal))
    }

    fn not_strictly_false(&mut self, inner: &Step) -> Result<'a> {
        let result = self.eval(inner);
        self.charge(1)?;
        match result {
            Ok(Val::Bool(value)) => Ok(Val::Bool(value)),
            Err(error) if !error.absorbable() => Err(error),
            _ => Ok(Val::Bool(true)),
        }
    }

    fn or_else(&mut self, parts: &[Step; 2], unwrap: bool) -> Result<'a> {
        match self.eval(&parts[0])? {
            Val::Optional(Some(value)) if unwrap => Ok((*value).clone()),
            value @ Val::Optional(Some(_)) => Ok(value),
            Val::Optional(None) => self.eval(&parts[1]),
            _ => Err(EvalError::no_such_overload()),
        }
    }

    /// An entry marked optional: `None` where it holds nothing.
    fn entry(&mut self, step: &Step, optional: bool) -> std::result::Result<Option<Val<'a>>, EvalError> {
        let value = self.eval(step)?;
        if !optional {
            return Ok(Some(value));
        }
        match value {
            Val::Optional(inner) => Ok(inner.map(|inner| (*inner).clone())),
            other => Err(EvalError::new(format!(
                "cannot initialize optional list element from non-optional value {}",
                other.plain_text()
            ))),
        }
    }

    fn list(&mut self, items: &[(Step, bool)]) -> Result<'a> {
        let mut values = Vec::with_capacity(items.len());
        for (item, optional) in items {
            values.extend(self.entry(item, *optional)?);
        }
        self.charge(LIST_COST)?;
        Ok(Val::list(values))
    }

    fn map(&mut self, entries: &[(Step, Step, bool)]) -> Result<'a> {
        let mut map = OwnedMap::default();
        for (key, value, optional) in entries {
            let key = self.eval(key)?;
            if let Some(value) = self.entry(value, *optional)? {
                map.insert(key, value)?;
            }
        }
        self.charge(MAP_COST)?;
        Ok(Val::Map(Map::Owned(Arc::new(map))))
    }

    fn object(&mut self, name: &Name, fields: &[(Name, Step, bool)]) -> Result<'a> {
        let mut values = Vec::with_capacity(fields.len());
        for (field, value, optional) in fields {
            if let Some(value) = self.entry(value, *optional)? {
                values.push((field.clone(), value));
            }
        }
        self.charge(STRUCT_COST)?;
        Ok(Val::Object(Arc::new(Object { name: name.clone(), fields: values })))
    }

    fn bind(&mut self, bind: &Bind) -> Result<'a> {
        self.slots[bind.slot] = self.eval(&bind.value);
        self.check_slot(bind.slot)?;
        let result = self.eval(&bind.body);
        self.slots[bind.slot] = Ok(Val::Null);
        result
    }

    /// Errors that nothing may absorb end the evaluation at once.
    fn check_slot(&self, slot: usize) -> std::result::Result<(), EvalError> {
        match &self.slots[slot] {
            Err(error) if !error.absorbable() => Err(error.clone()),
            _ => Ok(()),
        }
    }

    #[inline(never)]
    fn fold(&mut self, fold: &Fold) -> Result<'a> {
        let range = self.eval(&fold.range)?;
        self.slots[fold.accu] = self.eval(&fold.init);
        self.check_slot(fold.accu)?;
        match &range {
            Val::List(list) => {
                for index in 0..list.len() {
                    let item = list.get(index).unwrap_or(Ok(Val::Null));
                    match fold.var2 {
                        Some(var2) => {
                            self.slots[fold.var] = Ok(Val::Int(index as i64));
                            self.slots[var2] = item;
                        }
                        None => self.slots[fold.var] = item,
                    }
                    if !self.turn(fold)? {
                        break;
                    }
                }
            }
            Val::Map(map) => {
                for key in map.keys() {
                    if let Some(var2) = fold.var2 {
                        self.slots[var2] = map.get(&key).map(|value| value.unwrap_or(Val::Null));
                    }
                    self.slots[fold.var] = Ok(key);
                    if !self.turn(fold)? {
                        break;
                    }
                }
            }
            _ => return Err(EvalError::no_such_overload()),
        }
        let result = self.eval(&fold.result);
        for slot in [fold.accu, fold.var].into_iter().chain(fold.var2) {
            self.slots[slot] = Ok(Val::Null);
        }
        result
    }

    /// One turn of a loop; `false` ends it.
    fn turn(&mut self, fold: &Fold) -> std::result::Result<bool, EvalError> {
        self.turns += 1;
        if self.turns / TURNS_PER_COST > self.cost_max {
            return Err(EvalError::CostLimit);
        }
        match self.eval(&fold.condition) {
            Ok(Val::Bool(false)) => return Ok(false),
            Err(error) if !error.absorbable() => return Err(error),
            _ => {}
        }
        let next = self.eval(&fold.step);
        self.slots[fold.accu] = next;
        self.check_slot(fold.accu)?;
        Ok(true)
    }

    /// Takes the accumulator out of its slot, so that it has one owner and can grow in place.
    fn take(&mut self, slot: usize) -> Result<'a> {
        self.charge(1)?;
        std::mem::replace(&mut self.slots[slot], Ok(Val::Null))
    }

    fn append(&mut self, slot: usize, list: &Step) -> Result<'a> {
        let more = self.eval(list);
        let accu = self.take(slot)?;
        let (Val::List(List::Owned(mut items)), Val::List(more)) = (accu, more?) else {
            return Err(EvalError::no_such_overload());
        };
        self.charge(1)?;
        Arc::make_mut(&mut items).extend(more.to_vec()?);
        Ok(Val::List(List::Owned(items)))
    }

    fn insert(&mut self, slot: usize, args: &[Step]) -> Result<'a> {
        let mut values = Vec::with_capacity(args.len());
        for arg in args {
            values.push(self.eval(arg)?);
        }
        let Val::Map(Map::Owned(mut map)) = self.take(slot)? else {
            return Err(EvalError::no_such_overload());
        };
        self.charge(1)?;
        lists::insert_into(Arc::make_mut(&mut map), &values)?;
        Ok(Val::Map(Map::Owned(map)))
    }
}
