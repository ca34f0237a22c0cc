"""The networks that the workloads train, each written once for either library.

A network is a function of the library module and its sizes. It returns a module and the floating
point operations of one forward pass for one sample, of which `workloads` makes those of a step.
"""

from itertools import pairwise


def mlp(lib, *widths):
    """Linear layers with ReLU between them."""
    nn = lib.nn
    layers = []
    for n_in, n_out in pairwise(widths):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    flops = sum(2 * a * b for a, b in pairwise(widths))
    return nn.Sequential(*layers[:-1]), flops


def mnist_net(lib):
    """The network of PyTorch's MNIST example: (N, 1, 28, 28) -> log probabilities (N, 10)."""
    nn, F = lib.nn, lib.nn.functional

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = nn.Conv2d(1, 32, 3, 1)
            self.conv2 = nn.Conv2d(32, 64, 3, 1)
            self.dropout1 = nn.Dropout(0.25)
            self.dropout2 = nn.Dropout(0.5)
            self.fc1 = nn.Linear(9216, 128)
            self.fc2 = nn.Linear(128, 10)

        def forward(self, x):
            x = F.relu(self.conv1(x))
            x = F.relu(self.conv2(x))
            x = F.max_pool2d(x, 2)
            x = self.dropout1(x)
            x = lib.flatten(x, 1)
            x = F.relu(self.fc1(x))
            x = self.dropout2(x)
            return F.log_softmax(self.fc2(x), dim=1)

    first = 2 * 26 * 26 * 32 * 9
    return Net(), first + 2 * (24 * 24 * 64 * 32 * 9 + 9216 * 128 + 128 * 10)


def resnet18(lib, width, classes):
    """ResNet-18 for 32x32 images: a 3x3 stem of stride 1 and no pooling behind it.

    Source: He et al., Deep Residual Learning for Image Recognition (2016), sections 3.3 and 4.2.
    """
    nn, F = lib.nn, lib.nn.functional
    flops = 0

    def conv(n_in, n_out, kernel, stride, size):
        nonlocal flops
        flops += 2 * (size // stride) ** 2 * n_in * n_out * kernel**2
        return nn.Conv2d(n_in, n_out, kernel, stride, kernel // 2, bias=False)

    class Block(nn.Module):
        def __init__(self, n_in, n_out, stride, size):
            super().__init__()
            self.conv1 = conv(n_in, n_out, 3, stride, size)
            self.bn1 = nn.BatchNorm2d(n_out)
            self.conv2 = conv(n_out, n_out, 3, 1, size // stride)
            self.bn2 = nn.BatchNorm2d(n_out)
            self.shortcut = nn.Sequential()
            if stride != 1 or n_in != n_out:
                self.shortcut = nn.Sequential(
                    conv(n_in, n_out, 1, stride, size), nn.BatchNorm2d(n_out)
                )

        def forward(self, x):
            out = F.relu(self.bn1(self.conv1(x)))
            return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))

    class ResNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = conv(3, width, 3, 1, 32)
            self.bn1 = nn.BatchNorm2d(width)
            blocks, n_in, size = [], width, 32
            for stage in range(4):
                n_out = width * 2**stage
                for stride in (1 if stage == 0 else 2, 1):
                    blocks.append(Block(n_in, n_out, stride, size))
                    n_in, size = n_out, size // stride
            self.blocks = nn.Sequential(*blocks)
            self.linear = nn.Linear(n_in, classes)

        def forward(self, x):
            x = F.relu(self.bn1(self.conv1(x)))
            x = F.avg_pool2d(self.blocks(x), 4)
            return self.linear(lib.flatten(x, 1))

    return ResNet(), flops + 2 * 8 * width * classes


def lstm_language_model(lib, vocabulary, width, layers):
    """Embedding, LSTM, projection: tokens (T, N) and a state -> logits (T·N, vocabulary), state."""
    nn = lib.nn

    class LanguageModel(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.Embedding(vocabulary, width)
            self.rnn = nn.LSTM(width, width, layers)
            self.decoder = nn.Linear(width, vocabulary)

        def forward(self, tokens, state):
            out, state = self.rnn(self.encoder(tokens), state)
            return self.decoder(out).view(-1, vocabulary), state

    return LanguageModel(), 2 * width * (layers * 8 * width + vocabulary)


def _transformer_block(lib, width, heads, causal):
    """Attention and a multilayer perceptron, each behind a norm and beside a residual path."""
    nn, F = lib.nn, lib.nn.functional

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.qkv = nn.Linear(width, 3 * width)
            self.proj = nn.Linear(width, width)
            self.fc = nn.Linear(width, 4 * width)
            self.out = nn.Linear(4 * width, width)

        def attend(self, x):
            n, tokens, _ = x.shape
            parts = self.qkv(x).split(width, dim=2)
            q, k, v = (p.view(n, tokens, heads, width // heads).transpose(1, 2) for p in parts)
            y = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
            return self.proj(y.transpose(1, 2).contiguous().view(n, tokens, width))

        def forward(self, x):
            x = x + self.attend(self.ln1(x))
            return x + self.out(F.gelu(self.fc(self.ln2(x))))

    return Block()


def _block_flops(width, tokens, causal):
    """Per token: projections 4 w², perceptron 8 w², scores and their product with the values."""
    seen = tokens / 2 if causal else tokens
    return 2 * (12 * width**2 + 2 * seen * width)


def gpt(lib, vocabulary, tokens, width, heads, layers):
    """A GPT with tied embeddings: tokens (N, T) -> logits (N·T, vocabulary)."""
    nn = lib.nn

    class GPT(nn.Module):
        def __init__(self):
            super().__init__()
            self.wte = nn.Embedding(vocabulary, width)
            self.wpe = nn.Embedding(tokens, width)
            blocks = [_transformer_block(lib, width, heads, True) for _ in range(layers)]
            self.blocks = nn.Sequential(*blocks)
            self.ln = nn.LayerNorm(width)
            self.head = nn.Linear(width, vocabulary, bias=False)
            self.head.weight = self.wte.weight
            for name, weight in self.named_parameters():
                if weight.dim() > 1:
                    scale = 0.02 / (2 * layers) ** 0.5 if name.endswith(("proj", "out")) else 0.02
                    nn.init.normal_(weight, std=scale)

        def forward(self, indices):
            places = lib.arange(indices.shape[1], device=indices.device)
            x = self.wte(indices) + self.wpe(places)
            return self.head(self.ln(self.blocks(x))).view(-1, vocabulary)

    per_token = layers * _block_flops(width, tokens, True) + 2 * width * vocabulary
    return GPT(), tokens * per_token


def vit(lib, image, patch, width, heads, layers, classes):
    """A vision transformer with a class token: (N, 3, image, image) -> (N, classes).

    Source: Dosovitskiy et al., An Image is Worth 16x16 Words (2021), section 3.1.
    """
    nn = lib.nn
    patches = (image // patch) ** 2

    class ViT(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Conv2d(3, width, patch, patch)
            self.token = nn.Parameter(lib.zeros(1, 1, width))
            self.position = nn.Parameter(0.02 * lib.randn(1, patches + 1, width))
            blocks = [_transformer_block(lib, width, heads, False) for _ in range(layers)]
            self.blocks = nn.Sequential(*blocks)
            self.ln = nn.LayerNorm(width)
            self.head = nn.Linear(width, classes)

        def forward(self, x):
            x = self.embed(x).flatten(2).transpose(1, 2)
            x = lib.cat((self.token.expand(x.shape[0], -1, -1), x), dim=1) + self.position
            return self.head(self.ln(self.blocks(x))[:, 0])

    body = (patches + 1) * layers * _block_flops(width, patches + 1, False)
    return ViT(), body + 2 * (patches * 3 * patch**2 * width + width * classes)
