//! Many streams of one HTTP/2 connection, which one task of the server runs.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use apiserver::config::Security;
use http::StatusCode;
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use support::{CONFIG_MAPS, DEADLINE, TestServer, config_map};
use tempfile::TempDir;

#[tokio::test(flavor = "multi_thread")]
async fn watches_lists_and_writes_of_one_connection_go_on_beside_each_other() {
    let server = TestServer::start().await;
    let connection = server.admin().connect_http2().await;
    let mut watches = Vec::new();
    for _ in 0..20 {
        watches.push(connection.watch(&format!("{CONFIG_MAPS}?watch=1&resourceVersion=0")).await);
    }
    // Longer than the windows of the client, so that the streams wait for each other's.
    let text = "x".repeat(20_000);
    let writes = (0..40).map(|index| {
        let object = config_map(&format!("m{index:02}"), json!({}), json!({"text": text}));
        connection.send("POST", CONFIG_MAPS, &object)
    });
    let created = futures::future::join_all(writes);
    let events = futures::future::join_all(watches.iter_mut().map(async |watch| {
        let mut names = Vec::new();
        while names.len() < 40 {
            let (kind, name) = watch.next_named().await;
            assert_eq!(kind, "ADDED");
            names.push(name);
        }
        names
    }));
    let (created, events) =
        tokio::time::timeout(DEADLINE, futures::future::join(created, events)).await.unwrap();
    for response in created {
        assert_eq!(response.status(), StatusCode::CREATED);
    }
    for names in &events {
        assert_eq!(names, &events[0], "every watch has the same order");
    }
    let mut sorted = events[0].clone();
    sorted.sort();
    assert_eq!(sorted, (0..40).map(|index| format!("m{index:02}")).collect::<Vec<_>>());

    let lists = (0..8).map(async |_| {
        let response = connection.send("GET", CONFIG_MAPS, &Value::Null).await;
        let body = response.into_body().collect().await.unwrap().to_bytes();
        serde_json::from_slice::<Value>(&body).unwrap()["items"].as_array().unwrap().len()
    });
    let counts = tokio::time::timeout(DEADLINE, futures::future::join_all(lists)).await.unwrap();
    assert_eq!(counts, vec![40; 8]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_ends_the_watches_of_a_connection_and_then_the_connection() {
    let server = TestServer::start().await;
    let connection = server.admin().connect_http2().await;
    let mut watch = connection.watch(&format!("{CONFIG_MAPS}?watch=1")).await;
    let made = connection.send("POST", CONFIG_MAPS, &config_map("a", json!({}), json!({}))).await;
    assert_eq!(made.status(), StatusCode::CREATED);
    assert_eq!(watch.next_named().await.1, "a");
    server.stop().await;
    assert_eq!(watch.next().await, None);
    connection.closed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_told_to_go_away_answers_what_it_has_and_takes_no_more() {
    let security = Security { goaway_chance: 1.0, ..Security::default() };
    let server = TestServer::start_with(TempDir::new().unwrap(), security).await;
    let admin = server.admin();
    let connection = admin.connect_http2().await;
    let mut watch = connection.watch(&format!("{CONFIG_MAPS}?watch=1")).await;
    let refused = async {
        while let Ok(response) = connection.try_send("GET", "/version", &Value::Null).await {
            assert_eq!(response.status(), StatusCode::OK);
        }
    };
    tokio::time::timeout(DEADLINE, refused).await.expect("the connection takes no more");
    for name in ["a", "b"] {
        // HTTP/1.1 knows no such thing.
        admin.post(CONFIG_MAPS, &config_map(name, json!({}), json!({}))).await.expect(201);
        assert_eq!(watch.next_named().await.1, name, "a watch goes on");
    }
    drop(watch);
    connection.closed().await;
    let next = admin.connect_http2().await;
    assert_eq!(next.send("GET", "/version", &Value::Null).await.status(), StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_reads_nothing_holds_up_nobody_else() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let text = "x".repeat(100_000);
    for index in 0..20 {
        let object = config_map(&format!("m{index:02}"), json!({}), json!({"text": text}));
        admin.post(CONFIG_MAPS, &object).await.expect(201);
    }
    let idle = admin.connect_http2().await;
    // Two megabytes, of which the client's window takes 64 kB.
    let unread = idle.send("GET", CONFIG_MAPS, &Value::Null).await;
    let other = idle.send("GET", "/version", &Value::Null).await;
    assert_eq!(other.status(), StatusCode::OK);
    let connection = admin.connect_http2().await;
    let read = connection.send("GET", &format!("{CONFIG_MAPS}/m07"), &Value::Null).await;
    assert_eq!(read.into_body().collect().await.unwrap().to_bytes().len() / 100_000, 1);
    let body =
        tokio::time::timeout(DEADLINE, unread.into_body().collect()).await.unwrap().unwrap().to_bytes();
    let list: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(list["items"].as_array().unwrap().len(), 20);
}
