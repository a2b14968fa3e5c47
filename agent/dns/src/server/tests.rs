use std::net::SocketAddr;
use std::sync::{Arc, RwLock};

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use serde_json::json;
use tokio::net::{TcpStream, UdpSocket};
use tokio_util::sync::CancellationToken;

use super::{Config, Server, read_message, write_message};
use crate::Zone;

fn query(name: &str) -> Vec<u8> {
    let mut message = Message::new(9, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(Name::from_ascii(name).expect("a name"), RecordType::A));
    message.to_vec().expect("a query")
}

async fn start(upstreams: Vec<SocketAddr>) -> (SocketAddr, CancellationToken) {
    // UDP and TCP share a port: a free one is taken by TCP first, and tried again where UDP is not free.
    for _ in 0..50 {
        let probe = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let listen = probe.local_addr().expect("an address");
        drop(probe);
        let config = Config { listen, upstreams: upstreams.clone() };
        let zone = Arc::new(RwLock::new(Zone::new("cluster.local")));
        if let Ok(server) = Server::bind(config, Arc::clone(&zone)).await {
            let service =
                json!({"metadata": {"namespace": "a", "name": "web"}, "spec": {"clusterIP": "10.96.0.9"}});
            zone.write().expect("a lock").set_service(&serde_json::from_value(service).expect("a Service"));
            let cancel = CancellationToken::new();
            tokio::spawn(server.run(cancel.clone()));
            return (listen, cancel);
        }
    }
    panic!("no free port");
}

async fn over_udp(server: SocketAddr, query: &[u8]) -> Message {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
    socket.send_to(query, server).await.expect("sent");
    let mut buffer = [0; 4096];
    let length = socket.recv(&mut buffer).await.expect("an answer");
    Message::from_vec(&buffer[..length]).expect("a message")
}

#[tokio::test]
async fn udp_and_tcp_answer_and_a_connection_carries_several_queries() {
    let (server, cancel) = start(Vec::new()).await;
    assert_eq!(over_udp(server, &query("web.a.svc.cluster.local.")).await.answers.len(), 1);
    let mut stream = TcpStream::connect(server).await.expect("connected");
    for _ in 0..2 {
        write_message(&mut stream, &query("web.a.svc.cluster.local.")).await.expect("written");
        let reply = Message::from_vec(&read_message(&mut stream).await.expect("read")).expect("a message");
        assert_eq!(reply.answers.len(), 1);
    }
    cancel.cancel();
}

#[tokio::test]
async fn foreign_names_come_from_the_resolver_and_fail_without_one() {
    let (upstream, cancel_upstream) = start(Vec::new()).await;
    let (server, cancel) = start(vec![upstream]).await;
    // The upstream answers for its own domain only and has no resolver itself: it says SERVFAIL, and that is passed on.
    let reply = over_udp(server, &query("example.org.")).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
    assert_eq!(reply.queries.len(), 1);
    let (lonely, cancel_lonely) = start(Vec::new()).await;
    assert_eq!(over_udp(lonely, &query("example.org.")).await.metadata.response_code, ResponseCode::ServFail);
    for token in [cancel, cancel_upstream, cancel_lonely] {
        token.cancel();
    }
}
