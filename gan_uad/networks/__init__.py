"""Pure `nn.Module`s, one file per family, and how images are drawn from a generator.

Nothing here knows about data, training, files or the command line.

A generator maps z `[N, z_dim]` to images `[N, 3, R, R]` in [-1, 1] and has `z_dim` and `resolution`; a discriminator or critic maps
images to `[N]` and gives its `features(x)` `[N, F]`. A registered class is what is trained together (a GAN's two nets, one encoder).
"""
