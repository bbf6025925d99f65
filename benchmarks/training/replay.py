"""An agent whose searches are written beforehand: it says as much as its script asks for.

What it says is sampled; what comes back is the script's, whatever it said.
"""

from __future__ import annotations

from benchmarks.training.work import Script, reward_of
from searchrl.agents.episode import Action, ActionKind, Episode, Reward, Segment, Turn
from searchrl.data.questions import Question
from searchrl.models.protocol import LanguageModel, Sampling


async def replay(script: Script, model: LanguageModel, seed: int) -> Episode:
    """The script's episode, scored."""
    episode = Episode(Question(str(script.question), "", ("",)), "replay")
    episode.segments.append(Segment("prompt", script.prompt, ""))
    for output in script.outputs:
        sampling = Sampling(output.length, temperature=1.0, seed=seed)
        completion = await model.complete(episode.token_ids, sampling)
        episode.segments.append(
            Segment("model", completion.token_ids, completion.text, completion.logprobs)
        )
        episode.turns.append(Turn(Action(ActionKind.SEARCH if output.told else ActionKind.FINISH)))
        if output.told:
            episode.segments.append(Segment("environment", output.told, ""))
    said = [token for s in episode.segments if s.origin == "model" for token in s.token_ids]
    read = {origin: _length(episode, origin) for origin in ("prompt", "environment", "model")}
    episode.reward = Reward(reward_of(said), read)
    return episode


def _length(episode: Episode, origin: str) -> float:
    return float(sum(len(s.token_ids) for s in episode.segments if s.origin == origin))
