//! Where labels go: beside their marks, over nothing else.
//!
//! A local search, in pixels. Each label takes the cheapest place of a grid that overlaps no mark, line
//! or other label; then each looks again, the others standing, until none moves. Cheap is near its
//! mark, in line with the labels of its group, and reached by a leader line that crosses nothing. What
//! comes of it depends on the order, so several orders are tried.

/// A rectangle; y grows downwards.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Rect {
    pub(super) left: f64,
    pub(super) top: f64,
    pub(super) width: f64,
    pub(super) height: f64,
}

/// A straight line between two points.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Segment {
    pub(super) from: (f64, f64),
    pub(super) to: (f64, f64),
}

/// A label that looks for its place.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Label {
    /// The middle of its mark.
    pub(super) mark: (f64, f64),
    /// The mark's radius.
    pub(super) radius: f64,
    pub(super) width: f64,
    pub(super) height: f64,
    /// Labels of one group stand in columns.
    pub(super) group: usize,
}

/// A label's place, and the line that leads to it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Placed {
    pub(super) place: Rect,
    pub(super) leader: Segment,
}

/// What is there already.
#[derive(Debug, Clone, Default)]
pub(super) struct Field {
    pub(super) marks: Vec<Rect>,
    pub(super) texts: Vec<Rect>,
    pub(super) lines: Vec<Segment>,
}

impl Rect {
    /// The square around a mark.
    pub(super) fn around((x, y): (f64, f64), radius: f64) -> Self {
        Self { left: x - radius, top: y - radius, width: 2.0 * radius, height: 2.0 * radius }
    }

    pub(super) fn right(&self) -> f64 {
        self.left + self.width
    }

    pub(super) fn bottom(&self) -> f64 {
        self.top + self.height
    }

    /// The same with so much more on each side.
    pub(super) fn grown(&self, by: f64) -> Self {
        let (left, top) = (self.left - by, self.top - by);
        Self { left, top, width: self.width + 2.0 * by, height: self.height + 2.0 * by }
    }

    pub(super) fn overlaps(&self, other: &Self) -> bool {
        self.left < other.right()
            && other.left < self.right()
            && self.top < other.bottom()
            && other.top < self.bottom()
    }

    fn contains(&self, (x, y): (f64, f64)) -> bool {
        (self.left..self.right()).contains(&x) && (self.top..self.bottom()).contains(&y)
    }

    fn is_inside(&self, bounds: &Self) -> bool {
        self.left >= bounds.left
            && self.top >= bounds.top
            && self.right() <= bounds.right()
            && self.bottom() <= bounds.bottom()
    }

    /// The point of the left or right edge's middle that is nearer to `x`.
    fn side(&self, x: f64) -> (f64, f64) {
        let middle = self.top + self.height / 2.0;
        let (left, right) = (self.left, self.right());
        (if (x - left).abs() <= (x - right).abs() { left } else { right }, middle)
    }
}

impl Segment {
    fn length(&self) -> f64 {
        (self.to.0 - self.from.0).hypot(self.to.1 - self.from.1)
    }

    /// Whether both have a point in common; those that only touch or lie on one another do not count.
    fn crosses(&self, other: &Self) -> bool {
        let side = |a: (f64, f64), b: (f64, f64), p: (f64, f64)| {
            (b.0 - a.0) * (p.1 - a.1) - (b.1 - a.1) * (p.0 - a.0)
        };
        let apart = |line: &Self, one, two| {
            side(line.from, line.to, one) * side(line.from, line.to, two) < 0.0
        };
        apart(self, other.from, other.to) && apart(other, self.from, self.to)
    }

    fn enters(&self, rect: &Rect) -> bool {
        let corner = |right: bool, bottom: bool| {
            let x = if right { rect.right() } else { rect.left };
            (x, if bottom { rect.bottom() } else { rect.top })
        };
        let diagonals = [
            Self { from: corner(false, false), to: corner(true, true) },
            Self { from: corner(true, false), to: corner(false, true) },
        ];
        rect.contains(self.from)
            || rect.contains(self.to)
            || diagonals.iter().any(|diagonal| self.crosses(diagonal))
    }
}

/// Room between a label and what is beside it.
const GAP: f64 = 3.0;
/// Steps of the grid.
const STEP: (f64, f64) = (8.0, 6.0);
/// How far from its mark a label may begin.
const REACH: (f64, f64) = (420.0, 260.0);
/// How often each label looks again at most.
const ROUNDS: usize = 4;
/// What a label costs that has no place.
const LEFT_OUT: f64 = 2000.0;

/// Places for all labels inside `bounds`; `None` for one that finds none.
pub(super) fn place(bounds: &Rect, field: &Field, labels: &[Label]) -> Vec<Option<Placed>> {
    let keys: [fn(&Label) -> f64; 4] =
        [|label| label.mark.1, |label| -label.mark.1, |label| label.mark.0, |label| -label.mark.0];
    let tries = keys.map(|key| {
        let mut order: Vec<usize> = (0..labels.len()).collect();
        order.sort_by(|&a, &b| key(&labels[a]).total_cmp(&key(&labels[b])));
        search(bounds, field, labels, &order)
    });
    let best = tries.into_iter().min_by(|one, other| one.0.total_cmp(&other.0));
    best.map_or_else(Vec::new, |(_, placed)| placed)
}

/// Places in one order, and what they cost together.
fn search(
    bounds: &Rect,
    field: &Field,
    labels: &[Label],
    order: &[usize],
) -> (f64, Vec<Option<Placed>>) {
    let mut placed: Vec<Option<Placed>> = vec![None; labels.len()];
    let mut costs = vec![LEFT_OUT; labels.len()];
    for _ in 0..ROUNDS {
        let before = placed.clone();
        for &at in order {
            placed[at] = None;
            let best = cheapest(bounds, field, labels, &placed, at);
            (costs[at], placed[at]) = best.map_or((LEFT_OUT, None), |(cost, it)| (cost, Some(it)));
        }
        if placed == before {
            break;
        }
    }
    (costs.iter().sum(), placed)
}

/// The cheapest place of label `at` beside those that are placed.
fn cheapest(
    bounds: &Rect,
    field: &Field,
    labels: &[Label],
    placed: &[Option<Placed>],
    at: usize,
) -> Option<(f64, Placed)> {
    let label = &labels[at];
    let alike = labels.iter().zip(placed).filter(|(other, _)| other.group == label.group);
    let columns: Vec<f64> = alike.filter_map(|(_, it)| it.map(|it| it.place.left)).collect();
    let mut field = field.clone();
    field.texts.extend(placed.iter().flatten().map(|placed| placed.place));
    let leaders: Vec<Segment> = placed.iter().flatten().map(|placed| placed.leader).collect();
    let mut best: Option<(f64, Placed)> = None;
    for place in places(bounds, label, &columns) {
        let leader = leader(label, &place);
        let distance = distance(&columns, &place, &leader);
        // What may be crossed only adds to it.
        if best.as_ref().is_some_and(|(least, _)| distance >= *least) {
            continue;
        }
        let Some(crossed) = crossed(&field, &leaders, label, &place, &leader) else { continue };
        let cost = distance + crossed;
        if best.as_ref().is_none_or(|(least, _)| cost < *least) {
            best = Some((cost, Placed { place, leader }));
        }
    }
    best
}

/// The places of the grid within reach, and those in line with the columns that there are.
fn places(bounds: &Rect, label: &Label, columns: &[f64]) -> impl Iterator<Item = Rect> {
    let bounds = *bounds;
    let &Label { mark, radius, width, height, .. } = label;
    let beside = radius + 2.0 * GAP;
    let steps = |reach: f64, step: f64| {
        let count = (reach / step) as usize;
        (0..=count).map(move |at| at as f64 * step)
    };
    let right = steps(REACH.0, STEP.0).map(move |step| mark.0 + beside + step);
    let left = steps(REACH.0 + width, STEP.0).map(move |step| mark.0 - step);
    let flush = [mark.0 - beside - width];
    let lefts: Vec<f64> = right.chain(left).chain(flush).chain(columns.iter().copied()).collect();
    let middle = mark.1 - height / 2.0;
    let down = steps(REACH.1, STEP.1).map(move |step| middle + step);
    let tops: Vec<f64> =
        down.chain(steps(REACH.1, STEP.1).map(move |step| middle - step)).collect();
    lefts
        .into_iter()
        .flat_map(move |left| tops.clone().into_iter().map(move |top| (left, top)))
        .map(move |(left, top)| Rect { left, top, width, height })
        .filter(move |place| place.is_inside(&bounds))
}

/// From the mark's edge to the label.
fn leader(label: &Label, place: &Rect) -> Segment {
    let end = place.side(label.mark.0);
    let whole = Segment { from: label.mark, to: end };
    let part = (label.radius / whole.length().max(1e-9)).min(1.0);
    let from = (
        label.mark.0 + (end.0 - label.mark.0) * part,
        label.mark.1 + (end.1 - label.mark.1) * part,
    );
    Segment { from, to: end }
}

/// What the way from the mark costs: less where the label stands in line with others.
fn distance(columns: &[f64], place: &Rect, leader: &Segment) -> f64 {
    let aligned = columns.iter().any(|left| (left - place.left).abs() < 0.5);
    let steep = (leader.to.1 - leader.from.1).abs();
    leader.length() + 0.5 * steep - if aligned { 40.0 } else { 0.0 }
}

/// What it costs that the leader crosses; `None` where the label itself would lie on something.
fn crossed(
    field: &Field,
    leaders: &[Segment],
    label: &Label,
    place: &Rect,
    leader: &Segment,
) -> Option<f64> {
    let room = place.grown(GAP);
    let taken = field.texts.iter().any(|text| text.overlaps(&room))
        || field.marks.iter().any(|mark| mark.overlaps(&room))
        || field.lines.iter().chain(leaders).any(|line| line.enters(&room));
    if taken {
        return None;
    }
    let own = Rect::around(label.mark, label.radius);
    let others = leaders.iter().filter(|other| other.crosses(leader)).count();
    let texts = field.texts.iter().filter(|text| leader.enters(text)).count();
    let lines = field.lines.iter().filter(|line| line.crosses(leader)).count();
    let marks = field.marks.iter().filter(|mark| **mark != own && leader.enters(mark)).count();
    let sum = 150 * others + 1000 * texts + 250 * lines + 25 * marks;
    Some(sum as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synth::random::Rng;

    const BOUNDS: Rect = Rect { left: 0.0, top: 0.0, width: 900.0, height: 600.0 };

    fn label(x: f64, y: f64) -> Label {
        Label { mark: (x, y), radius: 6.0, width: 180.0, height: 18.0, group: 0 }
    }

    fn field(labels: &[Label]) -> Field {
        let marks = labels.iter().map(|label| Rect::around(label.mark, label.radius));
        Field { marks: marks.collect(), ..Field::default() }
    }

    #[test]
    fn lines_and_rectangles_meet() {
        let line = |from, to| Segment { from, to };
        let slope = line((0.0, 0.0), (10.0, 10.0));
        assert!(slope.crosses(&line((0.0, 10.0), (10.0, 0.0))));
        assert!(!slope.crosses(&line((0.0, 1.0), (10.0, 11.0))));
        let rect = Rect { left: 4.0, top: 4.0, width: 2.0, height: 2.0 };
        assert!(slope.enters(&rect) && line((5.0, 0.0), (5.0, 10.0)).enters(&rect));
        assert!(line((5.0, 5.0), (5.5, 5.0)).enters(&rect));
        assert!(!line((0.0, 1.0), (10.0, 1.0)).enters(&rect));
        assert!(rect.overlaps(&rect.grown(-0.5)) && !rect.overlaps(&Rect { left: 6.0, ..rect }));
    }

    #[test]
    fn a_label_alone_stands_beside_its_mark() {
        let labels = [label(300.0, 300.0)];
        let placed = place(&BOUNDS, &field(&labels), &labels)[0].unwrap();
        assert!((placed.place.top - 291.0).abs() < 1.0, "{placed:?}");
        assert!(placed.leader.length() < 12.0, "{placed:?}");
    }

    #[test]
    fn labels_overlap_nothing() {
        let seed = std::process::id().into();
        println!("seed {seed}");
        let mut rng = Rng::new(seed);
        let mut number = |below: usize| rng.below(below) as f64;
        for crowded in [true, false] {
            let spread = if crowded { 20 } else { 400 };
            let labels: Vec<Label> =
                (0..14).map(|_| label(250.0 + number(spread), 150.0 + number(spread))).collect();
            let mut field = field(&labels);
            field.lines.push(Segment { from: (0.0, 500.0), to: (500.0, 0.0) });
            let placed = place(&BOUNDS, &field, &labels);
            let placed: Vec<Placed> = placed.into_iter().map(Option::unwrap).collect();
            // Leaders may cross labels where there is no other way, which spread marks leave.
            let mut crossed = 0;
            for (at, one) in placed.iter().enumerate() {
                assert!(one.place.is_inside(&BOUNDS));
                assert!(!field.lines[0].enters(&one.place), "{one:?}");
                assert!(!field.marks.iter().any(|mark| mark.overlaps(&one.place)), "{one:?}");
                for other in &placed[at + 1..] {
                    assert!(!one.place.overlaps(&other.place), "{one:?} {other:?}");
                    crossed += usize::from(other.leader.enters(&one.place));
                    crossed += usize::from(one.leader.enters(&other.place));
                }
            }
            assert!(crossed <= usize::from(crowded), "{crossed} leaders cross labels");
        }
    }

    #[test]
    fn a_label_without_room_has_no_place() {
        let labels = [Label { width: 2000.0, ..label(10.0, 10.0) }];
        assert_eq!(place(&BOUNDS, &field(&labels), &labels), [None]);
    }
}
