import pytest

from runtime.plan_search.scopes import scopes


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("/backbone/conv1/Conv", "backbone"),
        ("/backbone/relu/Relu", "backbone"),
        ("/backbone/layer1/layer1.0/conv1/Conv", "backbone/layer1/layer1.0"),
        ("/backbone/layer1/layer1.0/relu_1/Relu", "backbone/layer1/layer1.0"),
        ("/backbone/layer1/layer1.0/Add", "backbone/layer1/layer1.0"),
        ("/backbone/layer1/layer1.0/downsample/downsample.0/Conv", "backbone/layer1/layer1.0/downsample"),
        ("/neck/lateral_convs.0/conv/Conv", "neck/lateral_convs.0"),
        ("/neck/Resize", "neck"),
        ("/rpn_head/rpn_conv_1/Conv", "rpn_head"),
        ("/rpn_head/Relu_1", "rpn_head"),
        ("/Transpose", "outside any module"),
    ],
)
def test_names_that_follow_modules(name: str, group: str) -> None:
    names = [
        "/backbone/conv1/Conv",
        "/backbone/relu/Relu",
        "/backbone/layer1/layer1.0/conv1/Conv",
        "/backbone/layer1/layer1.0/relu_1/Relu",
        "/backbone/layer1/layer1.0/downsample/downsample.0/Conv",
        "/backbone/layer1/layer1.0/Add",
        "/neck/lateral_convs.0/conv/Conv",
        "/neck/Resize",
        "/rpn_head/rpn_conv_1/Conv",
        "/rpn_head/Relu_1",
        "/Transpose",
    ]
    assert scopes(names)[name] == group


def test_names_that_say_nothing() -> None:
    names = [f"Conv_{i}" for i in range(11)]
    assert scopes(names) == {
        **dict.fromkeys(names[:8], "Conv_0 ... Conv_7"),
        **dict.fromkeys(names[8:], "Conv_8 ... Conv_10"),
    }


def test_nothing() -> None:
    assert scopes([]) == {}
