use std::collections::BTreeSet;

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);

fn level(seats: u32, response: Response) -> Arc<Level> {
    let level = Arc::new(Level::new("test", false));
    level.configure(Share::default(), response);
    level.set_limits(Limits { nominal: seats, min: seats, max: seats });
    level
}

const QUEUES: Response = Response::Queue { queues: 16, hand: 4, length: 3 };

/// Lets the spawned tasks run until `count` requests wait.
async fn until_waiting(level: &Arc<Level>, count: u32) {
    tokio::time::timeout(PATIENCE, async {
        while level.numbers().waiting != count {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("in time");
}

#[tokio::test]
async fn free_seats_are_taken_at_once_and_given_back() {
    let level = level(2, Response::Reject);
    let first = level.take(1, "s", "", PATIENCE).await.unwrap();
    let second = level.take(1, "s", "", PATIENCE).await.unwrap();
    assert_eq!(level.take(1, "s", "", PATIENCE).await.err(), Some(Refusal::ConcurrencyLimit));
    assert_eq!((level.numbers().seats, level.numbers().executing), (2, 2));
    drop(first);
    assert!(level.take(1, "s", "", PATIENCE).await.is_ok());
    drop(second);
    assert_eq!((level.numbers().seats, level.numbers().executing), (0, 0));
}

#[tokio::test]
async fn a_request_wider_than_the_level_runs_alone() {
    let level = level(2, Response::Reject);
    let wide = level.take(10, "s", "", PATIENCE).await.unwrap();
    assert!(level.take(1, "s", "", PATIENCE).await.is_err());
    drop(wide);
    let _narrow = level.take(1, "s", "", PATIENCE).await.unwrap();
    assert!(level.take(10, "s", "", PATIENCE).await.is_err());
}

#[tokio::test]
async fn an_exempt_level_lets_everybody_in() {
    let level = Arc::new(Level::new("exempt", true));
    let mut all = Vec::new();
    for _ in 0..100 {
        all.push(level.take(5, "s", "", PATIENCE).await.unwrap());
    }
    assert_eq!((level.numbers().executing, level.numbers().seats), (100, 0));
}

#[tokio::test]
async fn who_waits_gets_the_seat_that_is_given_back() {
    let level = level(1, QUEUES);
    let held = level.take(1, "s", "a", PATIENCE).await.unwrap();
    let waiting = tokio::spawn({
        let level = level.clone();
        async move { level.take(1, "s", "b", PATIENCE).await }
    });
    until_waiting(&level, 1).await;
    drop(held);
    let seats = waiting.await.unwrap().unwrap();
    assert_eq!((level.numbers().seats, level.numbers().waiting), (1, 0));
    drop(seats);
    assert_eq!(level.numbers().seats, 0);
}

#[tokio::test]
async fn patience_ends_and_leaves_no_trace() {
    let level = level(1, QUEUES);
    let held = level.take(1, "s", "", PATIENCE).await.unwrap();
    assert_eq!(level.take(1, "s", "", Duration::from_millis(20)).await.err(), Some(Refusal::TimedOut));
    assert_eq!(level.numbers().waiting, 0);
    drop(held);
    assert!(level.take(1, "s", "", PATIENCE).await.is_ok());
}

#[tokio::test]
async fn a_client_that_leaves_gives_up_its_place_and_its_seat() {
    let level = level(1, QUEUES);
    let held = level.take(1, "s", "", PATIENCE).await.unwrap();
    for _ in 0..3 {
        let waiting = tokio::spawn({
            let level = level.clone();
            async move { drop(level.take(1, "s", "", PATIENCE).await) }
        });
        until_waiting(&level, 1).await;
        waiting.abort();
        assert!(waiting.await.is_err());
        until_waiting(&level, 0).await;
    }
    // Admitted, but the future is dropped before it runs again.
    let mut waiting = Box::pin(level.take(1, "s", "", PATIENCE));
    assert!(futures::poll!(waiting.as_mut()).is_pending());
    drop(held);
    assert_eq!(level.numbers().seats, 1);
    drop(waiting);
    assert_eq!((level.numbers().seats, level.numbers().waiting), (0, 0));
}

#[tokio::test]
async fn a_full_queue_refuses() {
    let level = level(1, Response::Queue { queues: 1, hand: 1, length: 2 });
    let _held = level.take(1, "s", "", PATIENCE).await.unwrap();
    for _ in 0..2 {
        let level = level.clone();
        tokio::spawn(async move { level.take(1, "s", "", PATIENCE).await.map(drop) });
    }
    until_waiting(&level, 2).await;
    assert_eq!(level.take(1, "s", "", PATIENCE).await.err(), Some(Refusal::QueueFull));
}

#[tokio::test]
async fn a_busy_flow_does_not_drown_a_quiet_one() {
    let level = level(1, Response::Queue { queues: 64, hand: 1, length: 100 });
    let (sender, mut order) = tokio::sync::mpsc::unbounded_channel();
    let held = level.take(1, "s", "first", PATIENCE).await.unwrap();
    let enqueue = |flow: &'static str| {
        let (level, sender) = (level.clone(), sender.clone());
        tokio::spawn(async move {
            let seats = level.take(1, "s", flow, PATIENCE).await.unwrap();
            sender.send(flow).unwrap();
            drop(seats);
        });
    };
    for count in 1..=20 {
        enqueue("busy");
        until_waiting(&level, count).await;
    }
    enqueue("quiet");
    until_waiting(&level, 21).await;
    drop(held);
    let mut seen = Vec::new();
    for _ in 0..21 {
        seen.push(order.recv().await.unwrap());
    }
    let at = seen.iter().position(|flow| *flow == "quiet").unwrap();
    assert!(at <= 2, "{seen:?}");
}

#[tokio::test]
async fn more_seats_let_in_who_waits() {
    let level = level(1, QUEUES);
    let _held = level.take(1, "s", "", PATIENCE).await.unwrap();
    let waiting = tokio::spawn({
        let level = level.clone();
        async move { level.take(1, "s", "b", PATIENCE).await }
    });
    until_waiting(&level, 1).await;
    level.set_current(2);
    assert!(waiting.await.unwrap().is_ok());
}

#[test]
fn a_hand_has_different_cards_and_is_the_same_every_time() {
    for (queues, hand) in [(1, 1), (16, 4), (64, 6), (128, 6), (8, 8)] {
        for flow in ["", "alice", "bob"] {
            let dealt = deal("schema", flow, queues, hand);
            assert_eq!(dealt, deal("schema", flow, queues, hand));
            assert_eq!(dealt.iter().collect::<BTreeSet<_>>().len(), hand as usize, "{dealt:?}");
            assert!(dealt.iter().all(|card| *card < queues as usize), "{dealt:?}");
        }
    }
    assert_ne!(deal("schema", "alice", 128, 6), deal("schema", "bob", 128, 6));
}
