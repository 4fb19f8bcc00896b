from medgen.checkpoint import About
from medgen.training.stages import inherited

HEARTS = About(licence="CC-BY-NC-SA-4.0", trained_with=("first",))


def test_a_model_has_the_licences_and_loss_networks_of_all_it_took_weights_from():
    mine = inherited(About(trained_with=("own",)), HEARTS, "hearts")
    assert (mine.licence, mine.trained_with) == ("CC-BY-NC-SA-4.0", ("first", "own"))
    mine = inherited(mine, About(licence="MIT", trained_with=("second", "own")))
    assert (mine.licence, mine.trained_with) == ("CC-BY-NC-SA-4.0 AND MIT", ("second", "own", "first"))
    assert mine.source == "fine-tuned from hearts"
    again = inherited(mine, About(licence="MIT"))
    assert again == mine


def test_what_is_not_known_of_a_source_takes_nothing_away():
    assert inherited(HEARTS, About()) == HEARTS
    assert inherited(About(), About()).licence == "unknown"
