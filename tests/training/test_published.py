"""Which stage a recipe of a published model names."""

import dataclasses

import pytest
import torch

from streammem.errors import ConfigError
from streammem.models import checkpoint
from streammem.models.published import FAMILIES, find
from streammem.training.published import read_recipe, stage_class, write_torch

RECIPES = sorted((checkpoint.CONFIGS / "train").glob("*.toml"))


def test_every_family_trains_and_is_found(tmp_path):
    for family in FAMILIES:
        (tmp_path / "r.toml").write_text(f'stage = "{family}"\n')
        assert stage_class(tmp_path / "r.toml").RECIPE().stage == family


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_shipped_recipe_trains_a_model_of_its_family(path):
    if stage_class(path) is None:
        with pytest.raises(ConfigError, match="give one of videollamb"):
            read_recipe(path)
        return
    recipe = read_recipe(path)
    if recipe.model.startswith("run-"):  # what an earlier recipe leaves
        return
    assert find(recipe.model, checkpoint.CONFIGS).family == recipe.stage


def test_what_a_model_began_with_is_written_beside_what_was_trained(tmp_path):
    said = find("goldfish-7b", checkpoint.CONFIGS)
    said = dataclasses.replace(said, session=dataclasses.replace(said.session, passages=9))
    path = write_torch(said, "checkpoint", {"weight": torch.ones(2)}, tmp_path)
    again = find(str(path), checkpoint.CONFIGS)
    assert again.session == said.session != type(said.session)()
    assert again.options == said.options
