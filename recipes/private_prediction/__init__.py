"""Can a server classify images that it cannot see, with a network that its client cannot see?

The server holds a trained network, the client holds images. Both are masked and secret-shared between the
two, modulo 2**64; linear layers, ReLU and argmax run on shares, with correlated randomness that a
provider deals; and the digit is opened to the client alone. Each is a process of its own.

Who sees what: the client sees masked weights, the network's sizes and number formats (for each layer one
        number of bytes, which bounds its outputs), and in the end a label for each image, or logits if
        the server lets it. The server sees masked images, and how many there are. The provider sees sizes
        and numbers of images; no image, weight or masked value is ever sent to it. All three must follow
        the protocol, and the provider must side with nobody: with the client it knows the weights, with
        the server the images (`hazards` shows it). Labels and logits tell something of the weights, as
        the answers of any network do, and no more than they do in the clear; nobody limits how many
        the client asks for.
Paper:  Beaver, "Efficient multiparty protocols using circuit randomization", 1991; Ben-Efraim, Nielsen
        and Omri, "Turbospeedz", 2019, eprint 2019/080 (masked evaluation); Boyle et al., "Function secret
        sharing for mixed-mode and fixed-point secure computation", 2021, eprint 2020/1392; Ishai et al.,
        "On the power of correlated randomness in secure computation", 2013 (truth tables); Escudero et
        al., "Improved primitives for MPC over mixed arithmetic-binary circuits", 2020, eprint 2020/338.
Source: Tsukerman, "Machine Learning for Cybersecurity Cookbook", Packt 2019, chapter 8, where PySyft 0.2
        shares a network and images among virtual workers of one process; it prints 9742/10048.
Status: simplified (parties that follow the protocol, no protection against cheaters; a trusted provider;
        without certificates, connections are authenticated when they open, and not encrypted).
Expect: all 10,000 test images of MNIST: 98.51 % right, the plaintext network's label for every one, logits
        within 0.001, and equal to fixed point in the clear bit for bit; 12 rounds a query and 19 kB an
        image online, 53 kB an image from the provider, 2 MB of masked weights once; 0.7 s online and 2 s
        in all for ten queries of 1,000. By function secret sharing 8 rounds, 16 kB and 779 kB. Seeds come
        from `secrets` and are never the same; results and counts always are.

Which comparison: measured on 2 cores, 500 questions (one image's ReLU) took a party 0.6 ms by truth tables
and 0.8 ms by function secret sharing, 32,000 (64 images) 1.3 and 16 ms; the provider 0.5 and 3 ms, 0.9 and
66 ms, for 37 and 1,376 bytes a question. So truth tables are the default, and function secret sharing
is for one image over a slow line: it saves 4 of 12 messages that wait for each other.

Command: python -m recipes.private_prediction --images 10000
         python -m recipes.private_prediction --model FILE.pt --mean 0.1307 --std 0.3081
         python -m recipes.private_prediction --role server --secret-file secret --server 0.0.0.0:7842 …
"""

from recipes.private_prediction.alone import Report
from recipes.private_prediction.config import Config
from recipes.private_prediction.hazards import cut_shares, images_seen_by, weights_seen_by
from recipes.private_prediction.mlp import Layer, logits, read
from recipes.private_prediction.prediction import Result, describe, main, plot, run
from recipes.private_prediction.protocol import fixed_point
from recipes.private_prediction.rehearsal import Rehearsal, predict, rehearse

__all__ = [
    "Config",
    "Layer",
    "Rehearsal",
    "Report",
    "Result",
    "cut_shares",
    "describe",
    "fixed_point",
    "images_seen_by",
    "logits",
    "main",
    "plot",
    "predict",
    "read",
    "rehearse",
    "run",
    "weights_seen_by",
]
