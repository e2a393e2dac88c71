"""What a network starts from: initial values by kind of parameter, the closing gammas of residual bodies by recipe."""

import numpy as np
import pytest

from vargface.recipe import load_recipe, network_symbol
from vargface.runtime import mx
from vargface.training.initialise import Start

# network -> keys of a small one, residual bodies, one of their closing gammas
NETWORKS = {
    "vargfacenet": (["multiplier=0.25"], 15, "vargface_stage_3_unit_2_sep2_data_conv2d_pointwise_bn_gamma"),
    "resnet": (["num_layers=18", "multiplier=0.25"], 8, "stage2_unit2_bn3_gamma"),
    "mobilefacenet": (["variant=y1"], 12, "res_3_block0_conv_proj_batchnorm_gamma"),
}


def started(network, *overrides):
    """Return the initial arguments, name -> numpy, of a network of NETWORKS."""
    recipe = load_recipe("base", [f"network={network}", "embedding_size=16", *NETWORKS[network][0], *overrides])
    module = mx.mod.Module(network_symbol(recipe), label_names=None)
    module.bind([("data", (1, 3, 112, 112))], for_training=False)
    module.init_params(Start(recipe))
    return {name: value.asnumpy() for name, value in module.get_params()[0].items()}


@pytest.mark.parametrize("network", NETWORKS)
def test_closing_gammas_of_residual_bodies_start_at_the_recipes_value(network):
    _, bodies, known = NETWORKS[network]
    plain, small = started(network), started(network, "residual_gamma=0.2")
    differing = {name for name in plain if name.endswith("_gamma") and (plain[name] != small[name]).any()}
    assert known in differing
    assert len(differing) == bodies
    for name in differing:
        assert (plain[name] == 1).all()
        assert small[name] == pytest.approx(np.full(small[name].shape, 0.2))
    # a gamma that was closed over a shortcut would scale that, too
    assert not any("shortcut" in name or "_sc_" in name for name in differing)
