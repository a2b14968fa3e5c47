//! What expressions ask an authorizer: `authorizer.group("apps").resource("deployments").check("get").allowed()`.

use std::sync::Arc;

use crate::types::Name;

/// Who asks: the user of the request, or a ServiceAccount that the expression names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    Requester,
    ServiceAccount { namespace: String, name: String },
}

/// One question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    pub subject: Subject,
    pub verb: String,
    /// Asked of a path instead of a resource.
    pub path: Option<String>,
    pub group: String,
    pub resource: String,
    pub subresource: String,
    pub namespace: String,
    pub name: String,
    pub field_selector: String,
    pub label_selector: String,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub allowed: bool,
    pub reason: String,
    pub error: Option<String>,
}

/// What answers. Called while an expression runs, so it must not wait.
pub trait Authorizer: Send + Sync {
    fn authorize(&self, question: &Question) -> Answer;
}

/// Values of the authorizer's types.
#[derive(Clone)]
pub enum AuthorizerVal<'a> {
    Authorizer(&'a dyn Authorizer, Subject),
    Path(&'a dyn Authorizer, Arc<Question>),
    Group(&'a dyn Authorizer, Arc<Question>),
    Resource(&'a dyn Authorizer, Arc<Question>),
    Decision(Arc<Answer>),
}

impl Question {
    pub(crate) fn new(subject: Subject) -> Self {
        Self {
            subject,
            verb: String::new(),
            path: None,
            group: String::new(),
            resource: String::new(),
            subresource: String::new(),
            namespace: String::new(),
            name: String::new(),
            field_selector: String::new(),
            label_selector: String::new(),
        }
    }
}

impl<'a> AuthorizerVal<'a> {
    /// The variable `authorizer`.
    pub fn new(authorizer: &'a dyn Authorizer) -> Self {
        Self::Authorizer(authorizer, Subject::Requester)
    }

    /// The variable `authorizer.requestResource`.
    pub fn for_resource(
        authorizer: &'a dyn Authorizer,
        group: &str,
        resource: &str,
        subresource: &str,
        namespace: &str,
        name: &str,
    ) -> Self {
        let mut question = Question::new(Subject::Requester);
        group.clone_into(&mut question.group);
        resource.clone_into(&mut question.resource);
        subresource.clone_into(&mut question.subresource);
        namespace.clone_into(&mut question.namespace);
        name.clone_into(&mut question.name);
        Self::Resource(authorizer, Arc::new(question))
    }

    pub(crate) fn type_name(&self) -> Name {
        match self {
            Self::Authorizer(..) => "kubernetes.authorization.Authorizer",
            Self::Path(..) => "kubernetes.authorization.PathCheck",
            Self::Group(..) => "kubernetes.authorization.GroupCheck",
            Self::Resource(..) => "kubernetes.authorization.ResourceCheck",
            Self::Decision(_) => "kubernetes.authorization.Decision",
        }
        .into()
    }

    pub(crate) fn same(&self, other: &AuthorizerVal<'_>) -> bool {
        match (self, other) {
            (Self::Authorizer(_, one), AuthorizerVal::Authorizer(_, two)) => one == two,
            (Self::Path(_, one), AuthorizerVal::Path(_, two))
            | (Self::Group(_, one), AuthorizerVal::Group(_, two))
            | (Self::Resource(_, one), AuthorizerVal::Resource(_, two)) => one == two,
            (Self::Decision(one), AuthorizerVal::Decision(two)) => one == two,
            _ => false,
        }
    }
}
