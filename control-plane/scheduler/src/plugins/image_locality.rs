//! ImageLocality: prefers nodes that have the pod's images already, scaled by how widespread an image is, so that pods do
//! not pile up on the one node that pulled first.

use crate::framework::{Plugin, SCORE_MAX, Score};
use crate::pod::PodInfo;
use crate::snapshot::{NodeIndex, Snapshot};

const SIZE_MIN: i64 = 23 * 1024 * 1024;
const SIZE_MAX_PER_CONTAINER: i64 = 1000 * 1024 * 1024;

/// The plugin.
pub struct ImageLocality;

struct State<'a> {
    snapshot: &'a Snapshot,
    images: Vec<String>,
}

impl Plugin for ImageLocality {
    fn name(&self) -> &'static str {
        "ImageLocality"
    }

    fn pre_score<'a>(
        &'a self,
        snapshot: &'a Snapshot,
        pod: &'a PodInfo,
        _: &[NodeIndex],
    ) -> Option<Box<dyn Score + 'a>> {
        let spec = pod.spec();
        let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
        let images: Vec<String> =
            containers.filter_map(|container| container.image.as_deref()).map(normalized).collect();
        let known = images.iter().any(|image| snapshot.nodes_with_image(image) > 0);
        known.then(|| Box::new(State { snapshot, images }) as Box<dyn Score>)
    }
}

impl Score for State<'_> {
    fn score(&self, node: NodeIndex) -> i64 {
        let (row, total) = (self.snapshot.node(node), i64::try_from(self.snapshot.len()).unwrap_or(i64::MAX));
        let scaled = |image: &String| {
            let size = row.images.get(image)?;
            Some(size * i64::try_from(self.snapshot.nodes_with_image(image)).ok()? / total)
        };
        let sum: i64 = self.images.iter().filter_map(scaled).sum();
        let max = SIZE_MAX_PER_CONTAINER * i64::try_from(self.images.len()).unwrap_or(1);
        SCORE_MAX * (sum.clamp(SIZE_MIN, max) - SIZE_MIN) / (max - SIZE_MIN)
    }
}

/// Nodes report images with a tag, and on Docker Hub with its host name.
fn normalized(image: &str) -> String {
    let name = image.rsplit('/').next().unwrap_or(image);
    if name.contains(':') || image.contains('@') { image.to_owned() } else { format!("{image}:latest") }
}
