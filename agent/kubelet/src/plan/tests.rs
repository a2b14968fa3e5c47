use proptest::prelude::*;

use super::*;
use crate::actual::Sandbox;
use crate::status;

/// A runtime in memory: applies actions, and lets containers exit when told.
struct World {
    spec: PodSpec,
    actual: Actual,
    memory: Memory,
    now: Timestamp,
    next_id: u32,
    starts: Vec<String>,
}

impl World {
    fn new(spec: &str) -> Self {
        let spec = serde_json::from_str(spec).unwrap();
        let memory = Memory { network_ready: true, ..Memory::default() };
        let now = Timestamp::from_second(1_000_000).unwrap();
        Self { spec, actual: Actual::default(), memory, now, next_id: 0, starts: vec![] }
    }

    fn plan(&self) -> Plan {
        plan(&self.spec, &self.actual, &self.memory, self.now)
    }

    fn fresh_id(&mut self) -> String {
        self.next_id += 1;
        format!("id{}", self.next_id)
    }

    /// Plans and applies until nothing is left to do now.
    fn settle(&mut self) -> Plan {
        for _ in 0..100 {
            let plan = self.plan();
            if plan.actions.is_empty() {
                return plan;
            }
            for action in plan.actions {
                self.apply(action);
            }
        }
        panic!("does not settle: {:?}", self.plan());
    }

    fn apply(&mut self, action: Action) {
        self.now = after(self.now, Duration::from_millis(1));
        match action {
            Action::PrepareVolumes => self.memory.volumes_ready = true,
            Action::CreateSandbox { attempt } => {
                let id = self.fresh_id();
                let sandbox = Sandbox { id, attempt, ready: true, created_at: self.now, ips: vec![] };
                self.actual.sandboxes.push(sandbox);
            }
            Action::StopSandbox { id } => {
                for sandbox in self.actual.sandboxes.iter_mut().filter(|s| s.id == id) {
                    sandbox.ready = false;
                }
                assert!(!self.actual.containers.iter().any(|c| c.sandbox_id == id && c.is_running()));
                self.memory.stopped_sandboxes.insert(id);
            }
            Action::RemoveSandbox { id } => self.actual.sandboxes.retain(|s| s.id != id),
            Action::Start { name, attempt, sandbox_id } => self.start(&name, attempt, sandbox_id),
            Action::Kill { id, .. } => self.exit_id(&id, 137),
            Action::RemoveContainer { id } => self.actual.containers.retain(|c| c.id != id),
            Action::Teardown => {
                assert!(!self.actual.any_running(), "teardown under a running container");
                self.memory.torn_down = true;
                self.memory.volumes_ready = false;
            }
        }
        self.actual.sort();
    }

    fn start(&mut self, name: &str, attempt: u32, sandbox_id: String) {
        assert!(!self.actual.by_name(name).any(Container::is_running), "{name} started while it runs");
        let entry = pod::entries(&self.spec).into_iter().find(|e| e.name() == name).unwrap();
        if let Some(dead) = self.actual.newest(name) {
            let previous = self.memory.backoff_by_container.get(name).copied();
            let next = Backoff::next(previous, dead.finished_at, self.now);
            self.memory.backoff_by_container.insert(name.to_owned(), next);
        }
        let id = self.fresh_id();
        if !entry.has_startup_probe() {
            self.memory.started.insert(id.clone());
        }
        self.starts.push(name.to_owned());
        self.actual.containers.push(Container {
            id,
            name: name.to_owned(),
            sandbox_id,
            attempt,
            state: State::Running,
            created_at: self.now,
            started_at: self.now,
            finished_at: Timestamp::UNIX_EPOCH,
            exit_code: 0,
            reason: String::new(),
            message: String::new(),
            image: "i".into(),
            image_ref: String::new(),
            hash: entry.hash(),
        });
    }

    fn exit_id(&mut self, id: &str, code: i32) {
        for container in self.actual.containers.iter_mut().filter(|c| c.id == id) {
            container.state = State::Exited;
            container.exit_code = code;
            container.finished_at = self.now;
        }
    }

    fn exit(&mut self, name: &str, code: i32) {
        if let Some(id) = self.actual.newest(name).filter(|c| c.is_running()).map(|c| c.id.clone()) {
            self.exit_id(&id, code);
        }
    }

    fn lose_sandbox(&mut self) {
        if let Some(sandbox) = self.actual.sandboxes.first_mut() {
            sandbox.ready = false;
        }
    }

    fn running(&self) -> Vec<&str> {
        let mut names: Vec<_> =
            self.actual.containers.iter().filter(|c| c.is_running()).map(|c| c.name.as_str()).collect();
        names.sort_unstable();
        names
    }

    fn end(&mut self, deleted: bool) {
        let deadline = after(self.now, Duration::from_secs(30));
        self.memory.ending = Some(Ending { deadline, deleted });
    }
}

const TWO: &str = r#"{"containers":[{"name":"a","image":"i"},{"name":"b","image":"i"}]}"#;
const INITS: &str = r#"{"initContainers":[{"name":"i1","image":"i"},{"name":"side","image":"i","restartPolicy":"Always"},
    {"name":"i2","image":"i"}],"containers":[{"name":"a","image":"i"}]}"#;

#[test]
fn volumes_come_before_the_sandbox_and_the_sandbox_before_containers() {
    let mut world = World::new(TWO);
    assert_eq!(world.plan().actions, [Action::PrepareVolumes]);
    world.apply(Action::PrepareVolumes);
    assert_eq!(world.plan().actions, [Action::CreateSandbox { attempt: 0 }]);
    world.settle();
    assert_eq!(world.running(), ["a", "b"]);
}

#[test]
fn a_pod_waits_for_the_network_unless_it_uses_the_hosts() {
    let mut world = World::new(TWO);
    world.memory.network_ready = false;
    world.settle();
    assert!(world.actual.sandboxes.is_empty());
    world.spec.host_network = Some(true);
    world.settle();
    assert_eq!(world.running(), ["a", "b"]);
}

#[test]
fn init_containers_run_one_after_the_other_and_sidecars_stay() {
    let mut world = World::new(INITS);
    world.settle();
    assert_eq!(world.running(), ["i1"]);
    world.exit("i1", 0);
    world.settle();
    assert_eq!(world.running(), ["i2", "side"]);
    world.exit("i2", 0);
    world.settle();
    assert_eq!(world.running(), ["a", "side"]);
    assert_eq!(world.starts, ["i1", "side", "i2", "a"]);
}

#[test]
fn the_first_restart_is_immediate_and_the_next_ones_wait_ten_seconds_doubling() {
    let mut world = World::new(TWO);
    world.settle();
    world.exit("a", 1);
    world.settle();
    assert_eq!(world.running(), ["a", "b"]);
    for expected in [10, 20, 40, 80, 160, 300, 300] {
        world.exit("a", 1);
        let plan = world.settle();
        assert_eq!(world.running(), ["b"]);
        assert_eq!(plan.backing_off["a"], Duration::from_secs(expected));
        world.now = plan.wake_at.unwrap();
        world.settle();
        assert_eq!(world.running(), ["a", "b"]);
    }
    world.now = after(world.now, Duration::from_secs(601));
    world.exit("a", 1);
    world.settle();
    assert_eq!(world.running(), ["a", "b"], "ten quiet minutes reset the delay");
}

#[test]
fn a_start_under_way_is_no_backoff() {
    let mut world = World::new(TWO);
    world.settle();
    world.exit("a", 1);
    let dead = world.actual.newest("a").unwrap().finished_at;
    let next = Backoff::next(None, dead, world.now);
    world.memory.backoff_by_container.insert("a".into(), next);
    world.memory.busy.insert(Op::Start("a".into()));
    let plan = world.plan();
    assert!(plan.backing_off.is_empty() && plan.actions.is_empty(), "{plan:?}");
}

#[test]
fn restart_policies_decide_what_an_exit_means() {
    for (policy, code, restarted) in
        [("Always", 0, true), ("OnFailure", 0, false), ("OnFailure", 1, true), ("Never", 1, false)]
    {
        let mut world = World::new(TWO);
        world.spec.restart_policy = Some(policy.into());
        world.settle();
        world.exit("a", code);
        world.settle();
        assert_eq!(world.running().contains(&"a"), restarted, "{policy} {code}");
    }
}

#[test]
fn a_finished_pod_stops_its_sidecars_and_its_sandbox() {
    let mut world = World::new(INITS);
    world.spec.restart_policy = Some("Never".into());
    world.settle();
    world.exit("i1", 0);
    world.settle();
    world.exit("i2", 0);
    world.settle();
    world.exit("a", 0);
    let plan = world.settle();
    assert!(plan.ended && world.running().is_empty() && world.memory.torn_down);
    assert!(!world.actual.containers.is_empty(), "dead containers stay for their logs");
}

#[test]
fn deletion_kills_sidecars_after_the_others_and_removes_the_sandbox_last() {
    let mut world = World::new(INITS);
    world.settle();
    world.exit("i1", 0);
    world.settle();
    world.exit("i2", 0);
    world.settle();
    world.end(true);
    let killed = |plan: &Plan| match &plan.actions[..] {
        [Action::Kill { name, .. }] => name.clone(),
        other => panic!("{other:?}"),
    };
    let first = world.plan();
    assert_eq!(killed(&first), "a");
    world.apply(first.actions[0].clone());
    assert_eq!(killed(&world.plan()), "side");
    let plan = world.settle();
    assert!(plan.ended && world.actual.sandboxes.is_empty());
}

#[test]
fn what_is_left_of_a_pod_that_has_ended_is_kept_until_the_node_needs_its_disk() {
    let mut world = World::new(TWO);
    world.settle();
    world.end(false);
    assert!(world.settle().ended);
    assert_eq!((world.actual.sandboxes.len(), world.actual.containers.len()), (1, 2));
    world.memory.reclaim = true;
    assert!(world.settle().ended);
    assert!(world.actual.sandboxes.is_empty());
}

#[test]
fn a_kill_under_way_is_repeated_only_when_the_deadline_shrinks() {
    let mut world = World::new(TWO);
    world.settle();
    world.end(true);
    for container in &world.actual.containers {
        let deadline = world.memory.ending.as_ref().unwrap().deadline;
        world.memory.killing.insert(container.id.clone(), deadline);
    }
    assert!(world.plan().actions.is_empty());
    world.memory.ending.as_mut().unwrap().deadline = world.now;
    assert_eq!(world.plan().actions.len(), 2);
}

#[test]
fn a_lost_sandbox_is_replaced_and_everything_in_it_starts_again() {
    let mut world = World::new(TWO);
    world.settle();
    world.lose_sandbox();
    world.settle();
    assert_eq!(world.running(), ["a", "b"]);
    assert_eq!(world.actual.ready_sandbox().unwrap().attempt, 1);
    assert!(world.actual.containers.iter().filter(|c| c.is_running()).all(|c| c.attempt == 1));
}

#[test]
fn a_condemned_container_is_killed_and_restarted() {
    let mut world = World::new(TWO);
    world.spec.restart_policy = Some("OnFailure".into());
    world.settle();
    let id = world.actual.newest("a").unwrap().id.clone();
    world.memory.unhealthy.insert(id.clone(), KillReason::LivenessProbe);
    assert!(matches!(&world.plan().actions[..], [Action::Kill { id: killed, .. }] if *killed == id));
    world.exit("a", 0);
    world.settle();
    assert_eq!(world.running(), ["a", "b"]);
    assert_ne!(world.actual.newest("a").unwrap().id, id);
}

#[test]
fn a_changed_image_restarts_only_that_container() {
    let mut world = World::new(TWO);
    world.settle();
    let kept = world.actual.newest("b").unwrap().id.clone();
    world.spec.containers[0].image = Some("other".into());
    world.settle();
    assert_eq!(world.running(), ["a", "b"]);
    assert_eq!(world.actual.newest("b").unwrap().id, kept);
}

#[test]
fn only_the_last_dead_container_of_a_name_is_kept() {
    let mut world = World::new(TWO);
    world.settle();
    for _ in 0..5 {
        world.exit("a", 1);
        world.now = after(world.now, Duration::from_secs(400));
        world.settle();
    }
    assert_eq!(world.actual.by_name("a").count(), 2);
}

#[derive(Clone, Debug)]
enum Happening {
    Exit(usize, i32),
    SandboxLost,
    Condemned(usize),
    TimePasses(u64),
    KubeletRestarts,
    Step,
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        (0usize..4, 0i32..2).prop_map(|(index, code)| Happening::Exit(index, code)),
        Just(Happening::SandboxLost),
        (0usize..4).prop_map(Happening::Condemned),
        (1u64..700).prop_map(Happening::TimePasses),
        Just(Happening::KubeletRestarts),
        Just(Happening::Step),
    ]
}

fn happen(world: &mut World, happening: &Happening) {
    let name =
        |world: &World, index: usize| pod::entries(&world.spec).get(index).map(|e| e.name().to_owned());
    match happening {
        Happening::Exit(index, code) => {
            if let Some(name) = name(world, *index) {
                world.exit(&name, *code);
            }
        }
        Happening::SandboxLost => world.lose_sandbox(),
        Happening::Condemned(index) => {
            let running = name(world, *index).and_then(|name| world.actual.newest(&name).cloned());
            if let Some(container) = running.filter(Container::is_running) {
                world.memory.unhealthy.insert(container.id, KillReason::LivenessProbe);
            }
        }
        Happening::TimePasses(seconds) => world.now = after(world.now, Duration::from_secs(*seconds)),
        Happening::KubeletRestarts => {
            let started = std::mem::take(&mut world.memory.started);
            world.memory = Memory { network_ready: true, started, ..Memory::default() };
        }
        Happening::Step => {
            if let Some(action) = world.plan().actions.into_iter().next() {
                world.apply(action);
            }
        }
    }
}

proptest! {
    #[test]
    fn any_order_of_events_converges_to_all_containers_running(events in prop::collection::vec(happening(), 0..40)) {
        let mut world = World::new(INITS);
        for event in &events {
            happen(&mut world, event);
        }
        // Init containers end well from now on; time passes until nothing waits.
        for _ in 0..20 {
            let plan = world.settle();
            for init in ["i1", "i2"] {
                world.exit(init, 0);
            }
            if let Some(at) = plan.wake_at {
                world.now = at;
            }
        }
        prop_assert_eq!(world.running(), ["a", "side"]);
        let before: Vec<_> = world.actual.containers.iter().map(|c| c.id.clone()).collect();
        world.settle();
        let unchanged: Vec<_> = world.actual.containers.iter().map(|c| c.id.clone()).collect();
        prop_assert_eq!(before, unchanged);
    }

    #[test]
    fn a_restarted_kubelet_touches_nothing_that_runs(events in prop::collection::vec(happening(), 0..30)) {
        let mut world = World::new(TWO);
        for event in &events {
            happen(&mut world, event);
            world.settle();
        }
        world.now = after(world.now, Duration::from_secs(301));
        world.settle();
        happen(&mut world, &Happening::KubeletRestarts);
        let running = world.actual.clone();
        world.settle();
        for container in running.containers.iter().filter(|c| c.is_running()) {
            prop_assert!(world.actual.containers.contains(container));
        }
    }

    #[test]
    fn any_pod_can_be_deleted_at_any_time(events in prop::collection::vec(happening(), 0..30)) {
        let mut world = World::new(INITS);
        for event in &events {
            happen(&mut world, event);
        }
        world.end(true);
        let plan = world.settle();
        prop_assert!(plan.ended);
        prop_assert!(world.running().is_empty() && world.actual.sandboxes.is_empty());
    }

    #[test]
    fn a_phase_that_is_final_stays(events in prop::collection::vec(happening(), 0..40)) {
        let mut world = World::new(TWO);
        world.spec.restart_policy = Some("OnFailure".into());
        let mut previous = k8s_openapi::api::core::v1::PodStatus::default();
        for event in &events {
            happen(&mut world, event);
            world.settle();
            let pod = k8s_openapi::api::core::v1::Pod { spec: Some(world.spec.clone()), ..Default::default() };
            let view = status::View { actual: &world.actual, memory: &world.memory, ..status::View::for_tests() };
            let next = status::compute(&pod, &previous, &view, world.now);
            if pod::is_terminal_phase(previous.phase.as_deref()) {
                prop_assert_eq!(&next.phase, &previous.phase);
            }
            world.memory.terminal |= pod::is_terminal_phase(next.phase.as_deref());
            previous = next;
        }
    }
}
