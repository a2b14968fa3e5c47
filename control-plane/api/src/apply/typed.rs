//! What ownership knows about a value from its type: whether it is owned whole (a leaf) or field by field or item by
//! item, and by which path element an item of a list is found again.
//!
//! A value whose type nobody knows is typed by what it is: objects field by field, all else whole.

use std::sync::LazyLock;

use serde_json::{Map, Value};

use super::element::PathElement;
use crate::{
    field::quote,
    schema::{Field, ListType, MapType, Schema, Shape, Text, Type, TypeId},
};

static ANY: Shape = Shape::Any;
static EMPTY: LazyLock<Value> = LazyLock::new(|| Value::Object(Map::new()));
static NULL: Value = Value::Null;

/// The type of a value, with the field that holds it where that says more.
#[derive(Clone, Copy)]
pub(super) struct Typed<'a> {
    pub schema: &'a Schema,
    shape: &'a Shape,
    field: Option<&'a Field>,
}

/// What a type is to ownership.
#[derive(Clone, Copy)]
pub(super) enum Atom<'a> {
    /// Owned whole, whatever it holds.
    Leaf(Scalar),
    Struct(&'a Type),
    Map(&'a Shape),
    /// An object or list owned whole.
    AtomicObject,
    AtomicList,
    Set(&'a Shape),
    Keyed(&'a Shape, &'a [Text]),
    /// Set or keyed by the one field that patches merge by.
    KeyedBy(&'a Shape, &'a Text),
    /// An object of unknown fields.
    Deduced,
}

/// The check that a scalar must pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scalar {
    Numeric,
    String,
    Boolean,
    Untyped,
}

impl<'a> Typed<'a> {
    pub fn root(schema: &'a Schema, shape: &'a Shape) -> Self {
        Self { schema, shape, field: None }
    }

    pub fn any(self) -> Self {
        Self { shape: &ANY, field: None, ..self }
    }

    fn inner(self, shape: &'a Shape) -> Self {
        Self { shape, field: None, ..self }
    }

    /// What the type is; `value` decides where the type does not.
    pub fn atom(self, value: &Value) -> Atom<'a> {
        let map = self.field.and_then(|field| field.map);
        match self.schema.resolve(self.shape) {
            Shape::Ref(id) => {
                let ty = self.schema.get(*id);
                let atomic = map.map_or(ty.atomic, |map| map == MapType::Atomic);
                if atomic { Atom::AtomicObject } else { Atom::Struct(ty) }
            }
            Shape::Map(_) if map == Some(MapType::Atomic) => Atom::AtomicObject,
            Shape::Map(item) => Atom::Map(item),
            Shape::List(item) => self.list(item),
            Shape::Int32 | Shape::Int64 | Shape::Double => Atom::Leaf(Scalar::Numeric),
            Shape::String | Shape::Bytes => Atom::Leaf(Scalar::String),
            Shape::Boolean => Atom::Leaf(Scalar::Boolean),
            Shape::IntOrString | Shape::Quantity | Shape::Time | Shape::MicroTime => {
                Atom::Leaf(Scalar::Untyped)
            }
            Shape::SchemaOr(_) => deduce(value, Atom::AtomicObject),
            Shape::Object | Shape::Any if map == Some(MapType::Atomic) => deduce(value, Atom::AtomicObject),
            Shape::Object => Atom::Deduced,
            Shape::Any => deduce(value, Atom::Deduced),
        }
    }

    fn list(self, item: &'a Shape) -> Atom<'a> {
        let Some(field) = self.field else { return Atom::AtomicList };
        match &field.list {
            ListType::Atomic => Atom::AtomicList,
            ListType::Set => Atom::Set(item),
            ListType::Map(keys) => Atom::Keyed(item, keys),
            ListType::Unset if field.patch.merge => match &field.merge_key {
                Some(key) => Atom::KeyedBy(item, key),
                None => Atom::Set(item),
            },
            ListType::Unset => Atom::AtomicList,
        }
    }

    /// The type of a field of a struct; of unknown type where the struct does not know it.
    pub fn of_field(self, ty: &'a Type, name: &str) -> Self {
        match ty.field(name) {
            Some(field) => Self { shape: &field.shape, field: Some(field), ..self },
            None => self.any(),
        }
    }

    /// The type of an entry of an object, whatever kind of object it is.
    pub fn of_entry(self, atom: Atom<'a>, name: &str) -> Self {
        match atom {
            Atom::Struct(ty) => self.of_field(ty, name),
            Atom::Map(shape) => self.inner(shape),
            _ => self.any(),
        }
    }

    /// The type of an item of a list, whatever kind of list it is.
    pub fn of_item(self, atom: Atom<'a>) -> Self {
        match atom {
            Atom::Set(shape) | Atom::Keyed(shape, _) | Atom::KeyedBy(shape, _) => self.inner(shape),
            _ => match self.schema.resolve(self.shape) {
                Shape::List(shape) => self.inner(shape),
                _ => self.any(),
            },
        }
    }

    /// The path element of an item of a set or keyed list.
    ///
    /// # Errors
    /// When the item has none: a key is missing, or a set holds objects.
    pub fn element(self, atom: Atom<'a>, item: &Value) -> Result<PathElement, String> {
        match atom {
            Atom::Keyed(shape, keys) => self.keyed(shape, keys, item),
            Atom::KeyedBy(shape, key) => self.keyed(shape, std::slice::from_ref(key), item),
            Atom::Set(_) => match item {
                Value::Object(_) => {
                    Err("associative list without keys has an element that's a map type".to_owned())
                }
                Value::Array(_) => Err("not supported: associative list with lists as elements".to_owned()),
                Value::Null => {
                    Err("associative list without keys has an element that's an explicit null".to_owned())
                }
                item => Ok(PathElement::Value(item.clone())),
            },
            _ => Err("invalid indexing of non-associative list".to_owned()),
        }
    }

    fn keyed(self, shape: &'a Shape, keys: &[Text], item: &Value) -> Result<PathElement, String> {
        let object = match item {
            Value::Object(object) => object,
            Value::Null => {
                return Err("associative list with keys may not have a null element".to_owned());
            }
            _ => return Err("associative list with keys may not have non-map elements".to_owned()),
        };
        let mut fields = Vec::with_capacity(keys.len());
        for key in keys {
            let value = object.get(key.as_ref()).cloned().or_else(|| self.key_default(shape, key));
            fields.extend(value.map(|value| (key.clone(), value)));
        }
        if fields.is_empty() && !keys.is_empty() {
            let names: Vec<String> = keys.iter().map(|key| quote(key)).collect();
            return Err(format!(
                "associative list with keys has an element that omits all key fields [{}] (and doesn't have default \
                 values for any key fields)",
                names.join(" ")
            ));
        }
        Ok(PathElement::key(fields))
    }

    fn key_default(self, shape: &'a Shape, key: &str) -> Option<Value> {
        let Shape::Ref(id) = self.schema.resolve(shape) else { return None };
        let default = self.schema.get(*id).field(key)?.default.as_ref()?;
        serde_json::from_str(default).ok()
    }
}

/// The side that says what a value of unknown type is: the right one, unless that is null and the left an object.
pub(super) fn decisive<'v>(left: Option<&'v Value>, right: Option<&'v Value>) -> Option<&'v Value> {
    match (left, right) {
        (Some(left @ Value::Object(_)), Some(Value::Null)) => Some(left),
        _ => right.or(left),
    }
}

/// What a value of unknown type is to ownership; `object` where it is an object.
fn deduce<'a>(value: &Value, object: Atom<'a>) -> Atom<'a> {
    match value {
        Value::Object(_) => object,
        Value::Array(_) => Atom::AtomicList,
        _ => Atom::Leaf(Scalar::Untyped),
    }
}

/// The type of a whole object.
pub(super) fn shape_of(ty: TypeId) -> Shape {
    Shape::Ref(ty)
}

/// What stands for an absent field of a struct that is there itself: upstream's built-in kinds hold some by value, so
/// that no write adds or removes them, only what is inside.
pub(super) fn zero(schema: &Schema, ty: &Type, name: &str) -> Option<&'static Value> {
    if !std::ptr::eq(schema, crate::schema::builtin()) {
        return None;
    }
    let field = ty.field(name)?;
    match field.shape {
        Shape::Ref(_) if is_by_value(&ty.name, name) => Some(&EMPTY),
        Shape::List(_) | Shape::Map(_) if field.required => Some(&NULL),
        _ => None,
    }
}

fn is_by_value(ty: &str, field: &str) -> bool {
    matches!(field, "metadata" | "spec" | "status")
        || ty.strip_prefix("api.").is_some_and(|ty| BY_VALUE.binary_search(&(ty, field)).is_ok())
}

/// Fields besides `metadata`, `spec` and `status` whose Go type is a struct and no pointer.
const BY_VALUE: [(&str, &str); 60] = [
    ("admissionregistration.v1.MutatingWebhook", "clientConfig"),
    ("admissionregistration.v1.ValidatingWebhook", "clientConfig"),
    ("apps.v1.DaemonSetSpec", "template"),
    ("apps.v1.DaemonSetSpec", "updateStrategy"),
    ("apps.v1.DeploymentSpec", "strategy"),
    ("apps.v1.DeploymentSpec", "template"),
    ("apps.v1.ReplicaSetSpec", "template"),
    ("apps.v1.StatefulSetSpec", "template"),
    ("apps.v1.StatefulSetSpec", "updateStrategy"),
    ("autoscaling.v1.HorizontalPodAutoscalerSpec", "scaleTargetRef"),
    ("autoscaling.v2.ContainerResourceMetricSource", "target"),
    ("autoscaling.v2.ContainerResourceMetricStatus", "current"),
    ("autoscaling.v2.ExternalMetricSource", "metric"),
    ("autoscaling.v2.ExternalMetricSource", "target"),
    ("autoscaling.v2.ExternalMetricStatus", "current"),
    ("autoscaling.v2.ExternalMetricStatus", "metric"),
    ("autoscaling.v2.HorizontalPodAutoscalerSpec", "scaleTargetRef"),
    ("autoscaling.v2.ObjectMetricSource", "describedObject"),
    ("autoscaling.v2.ObjectMetricSource", "metric"),
    ("autoscaling.v2.ObjectMetricSource", "target"),
    ("autoscaling.v2.ObjectMetricStatus", "current"),
    ("autoscaling.v2.ObjectMetricStatus", "describedObject"),
    ("autoscaling.v2.ObjectMetricStatus", "metric"),
    ("autoscaling.v2.PodsMetricSource", "metric"),
    ("autoscaling.v2.PodsMetricSource", "target"),
    ("autoscaling.v2.PodsMetricStatus", "current"),
    ("autoscaling.v2.PodsMetricStatus", "metric"),
    ("autoscaling.v2.ResourceMetricSource", "target"),
    ("autoscaling.v2.ResourceMetricStatus", "current"),
    ("batch.v1.CronJobSpec", "jobTemplate"),
    ("batch.v1.JobSpec", "template"),
    ("core.v1.Container", "resources"),
    ("core.v1.ContainerStatus", "lastState"),
    ("core.v1.ContainerStatus", "state"),
    ("core.v1.EphemeralContainer", "resources"),
    ("core.v1.Event", "involvedObject"),
    ("core.v1.Event", "source"),
    ("core.v1.NodeDaemonEndpoints", "kubeletEndpoint"),
    ("core.v1.NodeStatus", "daemonEndpoints"),
    ("core.v1.NodeStatus", "nodeInfo"),
    ("core.v1.PersistentVolumeClaimSpec", "resources"),
    ("core.v1.PodTemplate", "template"),
    ("core.v1.PreferredSchedulingTerm", "preference"),
    ("core.v1.ServiceStatus", "loadBalancer"),
    ("core.v1.WeightedPodAffinityTerm", "podAffinityTerm"),
    ("discovery.v1.Endpoint", "conditions"),
    ("events.v1.Event", "deprecatedSource"),
    ("events.v1.Event", "regarding"),
    ("flowcontrol.v1.FlowSchemaSpec", "priorityLevelConfiguration"),
    ("flowcontrol.v1.LimitedPriorityLevelConfiguration", "limitResponse"),
    ("networking.v1.HTTPIngressPath", "backend"),
    ("networking.v1.IngressServiceBackend", "port"),
    ("networking.v1.IngressStatus", "loadBalancer"),
    ("networking.v1.NetworkPolicySpec", "podSelector"),
    ("rbac.v1.ClusterRoleBinding", "roleRef"),
    ("rbac.v1.RoleBinding", "roleRef"),
    ("resource.v1.AllocationResult", "devices"),
    ("resource.v1.ResourceClaimSpec", "devices"),
    ("resource.v1.ResourceSliceSpec", "pool"),
    ("storage.v1.VolumeAttachmentSpec", "source"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_by_value_are_sorted_and_exist() {
        assert!(BY_VALUE.is_sorted());
        let schema = crate::schema::builtin();
        for (name, field) in BY_VALUE {
            let ty = schema.get(schema.type_named(&format!("api.{name}")).unwrap());
            assert!(matches!(ty.field(field).unwrap().shape, Shape::Ref(_)), "{name}.{field}");
        }
    }

    #[test]
    fn keys_take_the_defaults_of_their_fields() {
        let schema = crate::schema::builtin();
        let shape = Shape::Ref(schema.type_named("api.core.v1.Container").unwrap());
        let container = Typed::root(schema, &shape);
        let Atom::Struct(ty) = container.atom(&NULL) else { panic!("a container is a struct") };
        let ports = container.of_field(ty, "ports");
        let atom = ports.atom(&NULL);
        let element = |item: Value| ports.element(atom, &item).map(|element| element.to_string());
        assert_eq!(
            element(serde_json::json!({"containerPort": 80})).unwrap(),
            r#"[containerPort=80,protocol="TCP"]"#
        );
        assert!(element(Value::Null).is_err());
        assert!(element(serde_json::json!(3)).is_err());
        assert_eq!(
            container.of_field(ty, "env").element(container.of_field(ty, "env").atom(&NULL), &serde_json::json!({})),
            Err("associative list with keys has an element that omits all key fields [\"name\"] (and doesn't have \
                 default values for any key fields)"
                .to_owned())
        );
    }
}
