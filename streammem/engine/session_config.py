"""How a session remembers, captions and answers; every option has a default that holds."""

from dataclasses import dataclass
from typing import Literal

from streammem.captioning.captioner import CaptionConfig
from streammem.config import override
from streammem.errors import ConfigError
from streammem.memory.memory import EPSILON, CacheConfig
from streammem.memory.retrieval import DEFAULT_RANKERS
from streammem.models.backbones.sampling import MOST_BEAMS, GenerationConfig
from streammem.models.protocols import StreamModel
from streammem.models.published import known_cuts
from streammem.models.tiny.model import ANSWER_DECODING
from streammem.models.tiny.planning import planning_file
from streammem.perception.scenetilling import SceneTillingConfig
from streammem.qa.answerer import AnswerConfig, Context, Letters


@dataclass(frozen=True, slots=True)
class SessionConfig:
    """How a session remembers, captions and answers.

    Attributes:
        scenes: SceneTilling's options; None takes the model's.
        cuts: where a video is cut; None takes the model's. ``streaming`` cuts while frames come,
            as every model can. Of a VideoLLaMB ``threshold`` and ``top3`` cut once a source has
            ended, see ``ParentOptions.cuts``; of a MiniGPT4-Video ``whole`` cuts nowhere and
            ``clips`` at fixed lengths, see ``MiniGPT4Options.cuts``.
        max_segments: rows that the cache keeps, >= 4.
        epsilon: in [0, 1); a closing segment whose keys are this close (1 - cosine) to the row
            before it extends that row, whose tokens stay; 0 keeps every segment a row of its own.
        retrieved: related past segments that a model's memory reads, if it reads any, >= 0.
        passages: segments shown to the language model for an answer, >= 1.
        now_frames: last frames shown to it besides, >= 0.
        still: a frame is not encoded again while none of 32 x 32 cells has changed its mean
            colour by so many of 255 levels since the last encoded one; 0 encodes every frame.
            The default lies above what H.264 leaves of sensor noise of a standard deviation of
            10 levels.
        sound: whether a model that listens hears each scene: ``notice`` reports a source whose
            sound is missing or fails, ``silent`` does not; ``off`` for other models.
        channels: of the sound that such a model hears: all ``mixed``, or the ``first`` alone, but
            of live sources.
        fixed: the camera stands still: while some part of the picture differs from what it has
            shown for long, that part alone is looked at, so that small things make scenes of their
            own. Not for films, whose people would lose their surroundings.
        context: what an answer is read from: ``memory``, or a control: the last frames only
            (``now``), segments spread evenly (``uniform``), captions without tokens (``captions``),
            or as Goldfish (``goldfish``, ``goldfish-again``), see ``AnswerConfig``.
        letters: of the text that Goldfish's contexts read: ``all``, or ``latin``; likewise.
        remark: let the model add a sentence of its own after an answer that was computed.
        steps: times that the model is asked for one answer, in [1, 32]; above 1 it may look things
            up in the memory before it answers, if it can call tools.
        steps_s: seconds after which it must answer, > 0.
        verify: where the keys say "not seen", a model that reads pictures looks at the nearest
            scenes and decides. Off by default: it costs a reply a scene.
        timezone: name in the time zone database, as in ``Europe/Berlin``, that wall-clock words
            are read in; None takes this computer's.
        planning: planning adapter by which plans without steps predict what comes next, as in
            ``kitchen``, or a file; None predicts from the past of the memory alone.
        rankers: rules that rank what is found and decide what counts as seen, applied in this
            order: names in ``memory.retrieval.RANKERS``.
        caption: decoding of captions; None takes the model's.
        answer: decoding of answers.
        candidates: captions drawn of a scene, of which the one that fits best is taken, in
            [1, 32]; 1 takes the likeliest. None takes the model's number, and 1 with beams, a
            temperature or an instruction.
        min_confidence: in [0, 1]; a caption of less confidence ends before the noun that makes it
            so unsure, what leads up to its first noun stays, and pictures that look like nothing
            known get none. 0 gives every caption whole; None takes the level of the model's fit.
        instruction: what a caption is asked by; None takes what the model was trained with.
    """

    scenes: SceneTillingConfig | None = None
    cuts: str | None = None
    max_segments: int = 4096
    epsilon: float = EPSILON
    retrieved: int = 4
    passages: int = 4
    now_frames: int = 4
    still: float = 6.0
    sound: Literal["off", "notice", "silent"] = "off"
    channels: Literal["mixed", "first"] = "mixed"
    fixed: bool = False
    context: Context = "memory"
    letters: Letters = "all"
    remark: bool = False
    steps: int = 1
    steps_s: float = 300.0
    verify: bool = False
    timezone: str | None = None
    planning: str | None = None
    rankers: tuple[str, ...] = DEFAULT_RANKERS
    caption: GenerationConfig | None = None
    answer: GenerationConfig = ANSWER_DECODING
    instruction: str | None = None
    candidates: int | None = None
    min_confidence: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.still <= 255:
            raise ConfigError(f"still={self.still}: give levels in [0, 255]")
        if self.channels not in ("mixed", "first"):
            raise ConfigError(f"channels={self.channels!r}: give mixed or first")
        if self.sound not in ("off", "notice", "silent"):
            raise ConfigError(f"sound={self.sound!r}: give off, notice or silent")
        if self.cuts is not None and self.cuts not in known_cuts():
            known = ", ".join(known_cuts())
            raise ConfigError(f"cuts={self.cuts!r}: give one of {known}")
        if self.min_confidence is not None and not 0 <= self.min_confidence <= 1:
            raise ConfigError(f"min-confidence {self.min_confidence}: give a number in [0, 1]")
        if self.candidates is not None and not 1 <= self.candidates <= MOST_BEAMS:
            raise ConfigError(f"candidates {self.candidates}: give a number in [1, {MOST_BEAMS}]")
        decoding = self.caption or GenerationConfig()
        if (self.candidates or 1) > 1 and (decoding.num_beams > 1 or decoding.temperature > 0):
            raise ConfigError("candidates are drawn for greedy captions: no beams, temperature 0")
        if self.planning is not None:
            planning_file(self.planning)  # which refuses what is not there
        if self.retrieved < 0 or self.now_frames < 0:
            raise ConfigError("retrieved and now_frames must be >= 0")
        _ = self.answering  # refuses what answers would
        CacheConfig(
            max_segments=self.max_segments, epsilon=self.epsilon
        )  # refuses what the cache would

    @property
    def captioning(self) -> CaptionConfig:
        """The options of captions."""
        return CaptionConfig(self.caption, self.instruction, self.candidates, self.min_confidence)

    @property
    def answering(self) -> AnswerConfig:
        """The options of answers."""
        return AnswerConfig(
            self.passages, self.context, self.remark, self.timezone, self.rankers, self.answer,
            self.steps, self.steps_s, self.verify, self.letters,
        )  # fmt: skip


def defaults_of(model: StreamModel) -> SessionConfig:
    """Return the options of a session of a model where nothing else is asked for."""
    own = SessionConfig(scenes=model.perceiver.scenes, caption=model.generator.decoding)
    return override(own, model.session_options, f"{model.name}: session.")
