//! One query to one answer, without IO.

use hickory_proto::op::{Edns, Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::SOA;
use hickory_proto::rr::{DNSClass, Name, RData, Record};

use crate::zone::{Records, Zone};

/// Seconds that a client may keep an answer: endpoints change quickly.
const TTL: u32 = 5;
/// The most that a datagram without EDNS carries, RFC 1035 section 4.2.1.
const PLAIN_DATAGRAM: u16 = 512;
/// The most that we put into a datagram, below the smallest IPv6 MTU.
const EDNS_DATAGRAM: u16 = 1232;

/// How the query came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Udp,
    Tcp,
}

/// What to do with a query.
#[derive(Debug)]
pub enum Answer {
    /// These bytes go back.
    Reply(Vec<u8>),
    /// The name is not the cluster's: ask the node's own resolvers.
    Forward,
    /// Not a query that can be answered at all; silence.
    Ignore,
}

/// Answers `query` from `zone`.
#[must_use]
pub fn answer(zone: &Zone, query: &[u8], transport: Transport) -> Answer {
    // A response must never be answered, or two servers talk for ever.
    if query.len() < 12 || query[2] & 0x80 != 0 {
        return Answer::Ignore;
    }
    let id = u16::from_be_bytes([query[0], query[1]]);
    let Ok(request) = Message::from_vec(query) else {
        return reply(
            &Message::error_msg(id, OpCode::Query, ResponseCode::FormErr),
            PLAIN_DATAGRAM,
            transport,
        );
    };
    let limit = match &request.edns {
        Some(edns) => edns.max_payload().clamp(PLAIN_DATAGRAM, EDNS_DATAGRAM),
        None => PLAIN_DATAGRAM,
    };
    if request.metadata.op_code != OpCode::Query {
        let error = Message::error_msg(id, request.metadata.op_code, ResponseCode::NotImp);
        return reply(&error, limit, transport);
    }
    let [question] = request.queries.as_slice() else {
        return reply(&Message::error_msg(id, OpCode::Query, ResponseCode::FormErr), limit, transport);
    };
    let mut response = Message::new(id, MessageType::Response, OpCode::Query);
    response.metadata.authoritative = true;
    response.metadata.recursion_desired = request.metadata.recursion_desired;
    response.metadata.recursion_available = true;
    response.add_query(question.clone());
    if request.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(EDNS_DATAGRAM);
        response.set_edns(edns);
    }
    if question.query_class != DNSClass::IN {
        response.metadata.response_code = ResponseCode::Refused;
        return reply(&response, limit, transport);
    }
    match zone.lookup(&question.name.to_ascii(), question.query_type) {
        Records::Elsewhere => return Answer::Forward,
        Records::Found(records) => {
            let records =
                records.into_iter().map(|data| Record::from_rdata(question.name.clone(), TTL, data));
            response.add_answers(records.collect::<Vec<_>>());
        }
        Records::NoData => negative(&mut response, zone, ResponseCode::NoError),
        Records::NoName => negative(&mut response, zone, ResponseCode::NXDomain),
    }
    reply(&response, limit, transport)
}

/// RFC 2308: a negative answer carries the SOA, whose minimum says how long it may be kept.
fn negative(response: &mut Message, zone: &Zone, code: ResponseCode) {
    response.metadata.response_code = code;
    let origin = zone.origin();
    let names = (
        Name::from_ascii(&origin),
        Name::from_ascii(format!("ns.dns.{origin}")),
        Name::from_ascii(format!("hostmaster.{origin}")),
    );
    if let (Ok(origin), Ok(server), Ok(mailbox)) = names {
        let soa = SOA::new(server, mailbox, 1, 7200, 1800, 86400, TTL);
        response.add_authority(Record::from_rdata(origin, TTL, RData::SOA(soa)));
    }
}

fn reply(response: &Message, limit: u16, transport: Transport) -> Answer {
    let Ok(bytes) = response.to_vec() else { return Answer::Ignore };
    if transport == Transport::Tcp || bytes.len() <= usize::from(limit) {
        return Answer::Reply(bytes);
    }
    let mut short = response.truncate();
    short.metadata.truncation = true;
    short.to_vec().map_or(Answer::Ignore, Answer::Reply)
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
    use hickory_proto::rr::{Name, RecordType};
    use serde_json::json;

    use super::{Answer, Transport, answer};
    use crate::Zone;

    fn query(name: &str, kind: RecordType) -> Vec<u8> {
        let mut message = Message::new(7, MessageType::Query, OpCode::Query);
        message.add_query(Query::query(Name::from_ascii(name).expect("a name"), kind));
        message.to_vec().expect("a query")
    }

    fn replied(answer: Answer) -> Message {
        let Answer::Reply(bytes) = answer else { panic!("no reply: {answer:?}") };
        Message::from_vec(&bytes).expect("a message")
    }

    fn headless(endpoints: usize) -> Zone {
        let mut zone = Zone::new("cluster.local");
        let service = json!({"metadata": {"namespace": "a", "name": "many"}, "spec": {"clusterIP": "None"}});
        zone.set_service(&serde_json::from_value(service).expect("a Service"));
        let endpoints: Vec<_> = (0..endpoints)
            .map(|n| json!({"addresses": [format!("10.244.{}.{}", n / 250, n % 250)]}))
            .collect();
        let slice = json!({
            "addressType": "IPv4", "endpoints": endpoints,
            "metadata": {"namespace": "a", "name": "s", "labels": {"kubernetes.io/service-name": "many"}}
        });
        zone.set_slice(&serde_json::from_value(slice).expect("an EndpointSlice"));
        zone
    }

    #[test]
    fn a_large_answer_is_truncated_over_udp_and_whole_over_tcp() {
        let zone = headless(100);
        let question = query("many.a.svc.cluster.local.", RecordType::A);
        let short = replied(answer(&zone, &question, Transport::Udp));
        assert!(short.metadata.truncation && short.answers.is_empty());
        let whole = replied(answer(&zone, &question, Transport::Tcp));
        assert!(!whole.metadata.truncation);
        assert_eq!(whole.answers.len(), 100);
    }

    #[test]
    fn absent_names_carry_the_soa() {
        let response =
            replied(answer(&headless(1), &query("x.a.svc.cluster.local.", RecordType::A), Transport::Udp));
        assert_eq!(response.metadata.response_code, ResponseCode::NXDomain);
        assert_eq!(response.authorities.len(), 1);
        assert!(response.metadata.authoritative);
    }

    #[test]
    fn foreign_names_are_forwarded_and_responses_are_not_answered() {
        let zone = headless(1);
        assert!(matches!(
            answer(&zone, &query("example.org.", RecordType::A), Transport::Udp),
            Answer::Forward
        ));
        let Answer::Reply(reply) =
            answer(&zone, &query("many.a.svc.cluster.local.", RecordType::A), Transport::Udp)
        else {
            panic!("no reply")
        };
        assert!(matches!(answer(&zone, &reply, Transport::Udp), Answer::Ignore));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_answered_or_ignored(bytes: Vec<u8>) {
            let _ = answer(&headless(2), &bytes, Transport::Udp);
            let mut query = query("many.a.svc.cluster.local.", RecordType::A);
            let length = query.len();
            for (index, byte) in bytes.iter().enumerate() {
                query[index % length] ^= byte;
            }
            let _ = answer(&headless(2), &query, Transport::Tcp);
        }
    }
}
