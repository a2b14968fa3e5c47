//! The authorizer's functions.

use std::sync::Arc;

use api::names;

use super::{Entry, no_overload};
use crate::{
    authorizer::{AuthorizerVal, Question, Subject},
    error::EvalError,
    value::Val,
};

type Result<'a> = std::result::Result<Val<'a>, EvalError>;

pub(super) const TABLE: &[Entry] = &[
    ("path", path, &[("authorizer_path", "authorizer.(string) -> path")]),
    ("group", group, &[("authorizer_group", "authorizer.(string) -> group")]),
    (
        "serviceAccount",
        service_account,
        &[("authorizer_serviceaccount", "authorizer.(string, string) -> authorizer")],
    ),
    ("resource", resource, &[("groupcheck_resource", "group.(string) -> resource")]),
    ("subresource", refine, &[("resourcecheck_subresource", "resource.(string) -> resource")]),
    ("namespace", refine, &[("resourcecheck_namespace", "resource.(string) -> resource")]),
    ("name", refine, &[("resourcecheck_name", "resource.(string) -> resource")]),
    ("fieldSelector", refine, &[("authorizer_fieldselector", "resource.(string) -> resource")]),
    ("labelSelector", refine, &[("authorizer_labelselector", "resource.(string) -> resource")]),
    (
        "check",
        check,
        &[
            ("pathcheck_check", "path.(string) -> decision"),
            ("resourcecheck_check", "resource.(string) -> decision"),
        ],
    ),
    ("errored", decision, &[("decision_errored", "decision.() -> bool")]),
    ("error", decision, &[("decision_error", "decision.() -> string")]),
    ("allowed", decision, &[("decision_allowed", "decision.() -> bool")]),
    ("reason", decision, &[("decision_reason", "decision.() -> string")]),
];

fn wrap<'a>(value: AuthorizerVal<'a>) -> Result<'a> {
    Ok(Val::Authorizer(Arc::new(value)))
}

fn target<'v, 'a>(args: &'v [Val<'a>]) -> std::result::Result<(&'v AuthorizerVal<'a>, &'v str), EvalError> {
    match args {
        [Val::Authorizer(value), Val::String(text)] => Ok((value, text)),
        _ => Err(EvalError::no_such_overload()),
    }
}

fn path<'a>(_: &'static str, args: &[Val<'a>]) -> Result<'a> {
    let (AuthorizerVal::Authorizer(authorizer, subject), path) = target(args)? else { return no_overload() };
    if path.trim().is_empty() {
        return Err(EvalError::new("path must not be empty"));
    }
    let question = Question { path: Some(path.to_owned()), ..Question::new(subject.clone()) };
    wrap(AuthorizerVal::Path(*authorizer, Arc::new(question)))
}

fn group<'a>(_: &'static str, args: &[Val<'a>]) -> Result<'a> {
    let (AuthorizerVal::Authorizer(authorizer, subject), group) = target(args)? else { return no_overload() };
    let question = Question { group: group.to_owned(), ..Question::new(subject.clone()) };
    wrap(AuthorizerVal::Group(*authorizer, Arc::new(question)))
}

fn service_account<'a>(_: &'static str, args: &[Val<'a>]) -> Result<'a> {
    let [Val::Authorizer(value), Val::String(namespace), Val::String(name)] = args else {
        return no_overload();
    };
    let AuthorizerVal::Authorizer(authorizer, _) = &**value else { return no_overload() };
    if !names::dns1123_subdomain(name, false).is_empty() {
        return Err(EvalError::new("Invalid service account name"));
    }
    if !names::dns1123_label(namespace, false).is_empty() {
        return Err(EvalError::new("Invalid service account namespace"));
    }
    let subject = Subject::ServiceAccount { namespace: namespace.to_string(), name: name.to_string() };
    wrap(AuthorizerVal::Authorizer(*authorizer, subject))
}

fn resource<'a>(_: &'static str, args: &[Val<'a>]) -> Result<'a> {
    let (AuthorizerVal::Group(authorizer, question), resource) = target(args)? else { return no_overload() };
    if resource.trim().is_empty() {
        return Err(EvalError::new("resource must not be empty"));
    }
    let question = Question { resource: resource.to_owned(), ..(**question).clone() };
    wrap(AuthorizerVal::Resource(*authorizer, Arc::new(question)))
}

fn refine<'a>(name: &'static str, args: &[Val<'a>]) -> Result<'a> {
    let (AuthorizerVal::Resource(authorizer, question), text) = target(args)? else { return no_overload() };
    let mut question = (**question).clone();
    let field = match name {
        "subresource" => &mut question.subresource,
        "namespace" => &mut question.namespace,
        "name" => &mut question.name,
        "fieldSelector" => &mut question.field_selector,
        _ => &mut question.label_selector,
    };
    text.clone_into(field);
    wrap(AuthorizerVal::Resource(*authorizer, Arc::new(question)))
}

fn check<'a>(_: &'static str, args: &[Val<'a>]) -> Result<'a> {
    let (AuthorizerVal::Path(authorizer, question) | AuthorizerVal::Resource(authorizer, question), verb) =
        target(args)?
    else {
        return no_overload();
    };
    let question = Question { verb: verb.to_owned(), ..(**question).clone() };
    wrap(AuthorizerVal::Decision(Arc::new(authorizer.authorize(&question))))
}

fn decision<'a>(name: &'static str, args: &[Val<'a>]) -> Result<'a> {
    let [Val::Authorizer(value)] = args else { return no_overload() };
    let AuthorizerVal::Decision(answer) = &**value else { return no_overload() };
    Ok(match name {
        "errored" => Val::Bool(answer.error.is_some()),
        "error" => Val::text(answer.error.clone().unwrap_or_default()),
        "allowed" => Val::Bool(answer.allowed),
        _ => Val::text(&*answer.reason),
    })
}
