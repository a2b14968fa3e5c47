//! MutatingAdmissionPolicy: expressions that give a part of the object to lay over it, or a JSON patch.

use api::{patch::json_patch, status::Status};
use cel::{
    Budget, List, Map, Val,
    policy::{Compiled, Inputs, Returns},
};
use serde_json::Value;

use super::{
    Bound, Misconfigured, Policies,
    documents::{Documents, is_converted},
    merge,
    source::{Binding, Common, Hook, Policy},
};
use crate::{
    admission::{GroupVersionKind, Operation, Pass, Request, rules::Matched},
    registry::fields::*,
};

pub(super) struct Mutating {
    common: Common,
    mutations: Vec<Mutation>,
    /// `reinvocationPolicy: IfNeeded`.
    is_asked_again: bool,
}

enum Mutation {
    Apply(Compiled),
    JsonPatch(Compiled),
}

impl Policy for Mutating {
    fn parse(mut common: Common, policy: &Value) -> Self {
        common.scope.patches = true;
        let mutation = |mutation: &Value| match text(mutation, "/patchType") {
            "JSONPatch" => Mutation::JsonPatch(
                common.compile(text(mutation, "/jsonPatch/expression").trim(), Returns::JsonPatch),
            ),
            _ => Mutation::Apply(common.compile(
                text(mutation, "/applyConfiguration/expression").trim(),
                Returns::ApplyConfiguration,
            )),
        };
        let mutations = items(policy, "/spec/mutations").iter().map(mutation).collect();
        let is_asked_again = text(policy, "/spec/reinvocationPolicy") == "IfNeeded";
        Self { common, mutations, is_asked_again }
    }

    fn common(&self) -> &Common {
        &self.common
    }
}

/// One policy, by one binding, with one parameter.
struct Invocation<'h> {
    policy: &'h Mutating,
    binding: &'h Binding,
    matched: Matched,
    params: Value,
}

impl Invocation<'_> {
    fn id(&self) -> String {
        let (policy, binding) = (&self.policy.common.name, &self.binding.name);
        let params = [text(&self.params, "/metadata/namespace"), text(&self.params, "/metadata/name")];
        format!("{policy}/{binding}/{}/{}", params[0], params[1])
    }
}

/// Errors of policies that fail closed, in upstream's words.
#[derive(Default)]
struct Refusals(Vec<String>);

impl Refusals {
    fn add(&mut self, policy: &Common, binding: Option<&Binding>, why: &str) {
        if policy.fails_open {
            return;
        }
        self.0.push(match binding {
            Some(binding) => {
                format!("policy '{}' with binding '{}' denied request: {why}", policy.name, binding.name)
            }
            None => format!("policy {:?} denied request: {why}", policy.name),
        });
    }

    fn into_result(self, request: &Request<'_>, by_expression: bool) -> Result<(), Status> {
        let Some(first) = self.0.first() else { return Ok(()) };
        let mut status = request.forbidden("admission request denied by policy");
        status.message = first.clone();
        if by_expression {
            status.reason = "Invalid".into();
        }
        Err(self.0.iter().fold(status, |status, message| status.with_cause("", message, "")))
    }
}

pub(super) async fn mutate(
    policies: &Policies,
    hooks: &[Hook<Mutating>],
    request: &Request<'_>,
    object: &mut Value,
    pass: &mut Pass<'_>,
) -> Result<(), Status> {
    let mut refusals = Refusals::default();
    let mut invocations = Vec::new();
    for hook in hooks {
        let mut errors = Vec::new();
        let bound = policies.bound(hook, request, object, &mut errors).await;
        for Misconfigured { binding, why } in errors {
            refusals.add(&hook.policy.common, binding, &why);
        }
        let Some((matched, bound)) = bound else { continue };
        for Bound { binding, params } in bound {
            let invocation =
                |params| Invocation { policy: &hook.policy, binding, matched: matched.clone(), params };
            invocations.extend(params.into_iter().map(invocation));
        }
    }
    let misconfigured = refusals.0.len();
    pass.begin(object);
    for invocation in &invocations {
        invoke(policies, invocation, request, object, pass, &mut refusals).await?;
    }
    pass.end(object);
    refusals.into_result(request, misconfigured == 0)
}

async fn invoke(
    policies: &Policies,
    invocation: &Invocation<'_>,
    request: &Request<'_>,
    object: &mut Value,
    pass: &mut Pass<'_>,
    refusals: &mut Refusals,
) -> Result<(), Status> {
    let id = invocation.id();
    if !object.is_object() || request.operation == Operation::Connect || !pass.asks(&id) {
        return Ok(());
    }
    let Invocation { policy, binding, matched, params } = invocation;
    let before = object.clone();
    for (index, mutation) in policy.mutations.iter().enumerate() {
        let documents =
            Documents::new(request, object, matched).await?.with_namespace(request, &*policies.cache)?;
        if index == 0
            && let Some(conditions) = &policy.common.conditions
        {
            match conditions.hold(request, &documents, params, &policies.authorizer) {
                Ok(true) => {}
                Ok(false) => return Ok(()),
                Err(why) => {
                    refusals.add(&policy.common, Some(binding), &why);
                    return Ok(());
                }
            }
        }
        match policy.apply(mutation, policies, request, matched, &documents, params) {
            Ok(mutated) => accept(request, matched, object, mutated).await?,
            Err(why) => refusals.add(&policy.common, Some(binding), &why),
        }
    }
    pass.asked(&id, policy.is_asked_again, *object != before);
    Ok(())
}

/// Takes a mutated object, in the version that the policy saw.
async fn accept(
    request: &Request<'_>,
    matched: &Matched,
    object: &mut Value,
    mut mutated: Value,
) -> Result<(), Status> {
    if is_converted(request, object, matched) {
        matched.target.normalise(&mut mutated)?;
        *object = matched.target.convert(request.target, mutated).await?;
        return Ok(());
    }
    let kind = GroupVersionKind::of(object);
    request.normalise(&kind, &mut mutated)?;
    *object = mutated;
    Ok(())
}

impl Mutating {
    /// The object after one mutation.
    fn apply(
        &self,
        mutation: &Mutation,
        policies: &Policies,
        request: &Request<'_>,
        matched: &Matched,
        documents: &Documents,
        params: &Value,
    ) -> Result<Value, String> {
        let authorizer = documents.authorizer(request, &policies.authorizer);
        let bindings = documents.bindings(request, params, &authorizer);
        let inputs = Inputs::new(&bindings, &self.common.variables);
        let mut budget = Budget::default();
        let object = &documents.object;
        match mutation {
            Mutation::Apply(expression) => {
                let value = evaluate(expression, &inputs, &mut budget)?;
                check_names(&value, "Object")?;
                let mut config = value.to_json().ok_or("invalid return type")?;
                for field in ["apiVersion", "kind"] {
                    config[field] = object[field].clone();
                }
                let kind = GroupVersionKind::of(object);
                merge::apply(&kind, &matched.target, object, &config)
                    .map_err(|why| format!("error applying patch: {why}"))
            }
            Mutation::JsonPatch(expression) => {
                let value = evaluate(expression, &inputs, &mut budget)?;
                let Some(Value::Array(operations)) = patch_operations(&value)? else {
                    let why = "type mismatch: JSONPatchType.expression should evaluate to array";
                    return Err(why.to_owned());
                };
                if tests_fail(object, &operations) {
                    return Ok(object.clone());
                }
                json_patch(object, &Value::Array(operations)).map_err(|why| format!("JSON Patch: {why}"))
            }
        }
    }
}

fn evaluate<'a>(
    expression: &Compiled,
    inputs: &Inputs<'a, '_>,
    budget: &mut Budget,
) -> Result<Val<'a>, String> {
    if let Err(why) = &expression.program {
        return Err(why.clone());
    }
    expression.evaluate(inputs, budget).map_err(|failure| failure.into_text())
}

/// The operations as JSON, each value's object types checked.
fn patch_operations(value: &Val<'_>) -> Result<Option<Value>, String> {
    if let Val::List(operations) = value {
        for operation in operations.iter().flatten() {
            let Val::Object(operation) = operation else { return Ok(None) };
            for (name, value) in &operation.fields {
                if &**name == "value"
                    && let Val::Object(inner) = value
                {
                    check_names(value, &inner.name)?;
                }
            }
        }
    }
    Ok(value.to_json())
}

/// Whether an operation `test` does not hold: then the patch is left alone as a whole.
fn tests_fail(object: &Value, operations: &[Value]) -> bool {
    let mut done: Vec<Value> = Vec::new();
    for operation in operations {
        if text(operation, "/op") == "test" {
            let so_far = json_patch(object, &Value::Array(done.clone())).unwrap_or_else(|_| object.clone());
            let found = so_far.pointer(text(operation, "/path")).unwrap_or(&Value::Null);
            if found != at(operation, "/value") {
                return true;
            }
        } else {
            done.push(operation.clone());
        }
    }
    false
}

/// Checks that the name of each constructed object is the path of fields that leads to it.
fn check_names(value: &Val<'_>, path: &str) -> Result<(), String> {
    let mut wrong = Vec::new();
    find_wrong_names(value, path, &mut wrong);
    if wrong.is_empty() { Ok(()) } else { Err(format!("type mismatch: {}", wrong.join("\n"))) }
}

fn find_wrong_names(value: &Val<'_>, path: &str, wrong: &mut Vec<String>) {
    match value {
        Val::Object(object) => {
            if &*object.name != path {
                wrong.push(format!(
                    "unexpected type name {:?}, expected {path:?}, which matches field name path from root Object type",
                    object.name
                ));
            }
            for (name, field) in &object.fields {
                find_wrong_names(field, &format!("{path}.{name}"), wrong);
            }
        }
        Val::List(list @ List::Owned(_)) => {
            list.iter().flatten().for_each(|item| find_wrong_names(&item, path, wrong));
        }
        Val::Map(map @ Map::Owned(_)) => {
            let values = map.keys().into_iter().filter_map(|key| map.get(&key).ok().flatten());
            values.for_each(|value| find_wrong_names(&value, path, wrong));
        }
        _ => {}
    }
}
