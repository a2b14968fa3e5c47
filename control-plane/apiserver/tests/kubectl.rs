//! What people do with a kind of their own, by kubectl.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use support::{DEADLINE, TestServer, kubectl::kubectl};

const DEFINITION: &str = r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata:
  name: widgets.example.com
spec:
  group: example.com
  scope: Namespaced
  names: {plural: widgets, kind: Widget, shortNames: [wd], categories: [all]}
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        description: A widget.
        properties:
          spec:
            type: object
            description: What is wanted.
            required: [size]
            properties:
              size: {type: string, enum: [small, large], description: How large it is.}
              replicas: {type: integer, default: 1}
            x-kubernetes-validations:
            - rule: self.replicas < 10
              message: there is no room for so many
          status:
            type: object
            properties:
              replicas: {type: integer}
    subresources:
      status: {}
      scale: {specReplicasPath: .spec.replicas, statusReplicasPath: .status.replicas}
    additionalPrinterColumns:
    - {name: Size, type: string, jsonPath: .spec.size}
    - {name: Wanted, type: integer, jsonPath: .spec.replicas, priority: 1}
"#;

fn widget(spec: &str) -> String {
    format!("apiVersion: example.com/v1\nkind: Widget\nmetadata:\n  name: a\nspec: {spec}\n")
}

/// In the words that kubectl passes on.
async fn what_is_bad_is_refused(server: &TestServer) {
    let refused = async |spec: &str, mode: &[&str]| {
        std::fs::write(server.folder.path().join("bad.yaml"), widget(spec)).unwrap();
        let (done, text) = kubectl(server, &[&["apply", "-f", "bad.yaml"], mode].concat()).await.unwrap();
        assert!(!done, "{text}");
        text
    };
    let text = refused("{size: huge}", &[]).await;
    let wanted = "spec.size: Unsupported value: \"huge\": supported values: \"small\", \"large\"";
    assert!(text.contains("The Widget \"a\" is invalid"), "{text}");
    assert!(text.contains(wanted), "{text}");
    let text = refused("{size: small, replicas: 11}", &[]).await;
    assert!(
        text.contains("spec: Invalid value: ") && text.contains("there is no room for so many"),
        "{text}"
    );
    let text = refused("{size: small, typo: 1}", &[]).await;
    assert!(text.contains("strict decoding error: unknown field \"spec.typo\""), "{text}");
    let text = refused("{size: small, replicas: 5}", &["--server-side"]).await;
    assert!(text.contains("Apply failed with") && text.contains(".spec.replicas"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kind_is_defined_explained_shown_and_judged() {
    let server = TestServer::start().await;
    let write = |name: &str, text: &str| std::fs::write(server.folder.path().join(name), text).unwrap();
    let run = async |arguments: &[&str]| kubectl(&server, arguments).await;
    write("both.yaml", &format!("{DEFINITION}---\n{}", widget("{size: small}")));
    let apply = ["apply", "-f", "both.yaml"];
    let Some((_, first)) = run(&apply).await else { return };
    assert!(
        first.contains("customresourcedefinition.apiextensions.k8s.io/widgets.example.com created"),
        "{first}"
    );
    // kubectl may have looked for the kind before it was there, as with upstream: then it says so, and the next time works.
    let applied = async {
        loop {
            let (done, text) = run(&apply).await.unwrap();
            if done {
                return text;
            }
            assert!(text.contains("no matches for kind \"Widget\""), "{text}");
        }
    };
    let text = tokio::time::timeout(DEADLINE, applied).await.unwrap();
    assert!(
        text.contains("customresourcedefinition.apiextensions.k8s.io/widgets.example.com unchanged"),
        "{text}"
    );
    assert!(text.contains("widget.example.com/a "), "{text}");
    let wait = ["wait", "--for=condition=established", "crd/widgets.example.com", "--timeout=20s"];
    assert!(run(&wait).await.unwrap().0);

    let shown = async |arguments: &[&str]| {
        let (done, text) = run(arguments).await.unwrap();
        assert!(done, "{arguments:?}: {text}");
        text
    };
    let table = shown(&["get", "wd"]).await;
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["NAME", "SIZE"], "{table}");
    assert_eq!(rows[1], ["a", "small"], "{table}");
    let wide = shown(&["get", "widgets", "-o", "wide"]).await;
    assert!(wide.lines().next().unwrap().ends_with("WANTED"), "{wide}");
    assert!(shown(&["get", "all"]).await.contains("widget.example.com/a"));
    let explained = shown(&["explain", "widget.spec"]).await;
    for part in [
        "KIND:       Widget",
        "What is wanted.",
        "size\t<string> -required-",
        "How large it is.",
        "enum: small, large",
    ] {
        assert!(explained.contains(part), "{part}: {explained}");
    }
    assert!(shown(&["api-resources", "--api-group=example.com"]).await.contains("wd"));
    shown(&["scale", "widget/a", "--replicas=3"]).await;
    assert_eq!(shown(&["get", "widget", "a", "-o", "jsonpath={.spec.replicas}"]).await, "3");
    shown(&["patch", "widget", "a", "--type=merge", "-p", "{\"spec\":{\"size\":\"large\"}}"]).await;
    shown(&["label", "widget", "a", "team=x"]).await;
    assert!(shown(&["get", "wd", "-l", "team=x", "-o", "name"]).await.contains("widget.example.com/a"));

    what_is_bad_is_refused(&server).await;
    shown(&["apply", "--server-side", "--force-conflicts", "-f", "bad.yaml"]).await;
    shown(&["delete", "-f", "both.yaml", "--ignore-not-found", "--timeout=20s"]).await;
    let (done, text) = run(&["get", "widgets"]).await.unwrap();
    assert!(!done, "{text}");
    server.stop().await;
}
