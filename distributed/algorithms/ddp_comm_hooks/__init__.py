"""Communication hooks: what ``DistributedDataParallel.register_comm_hook`` takes.

=======================  ==========================================  ============================
module                   hooks                                       bytes per float32 gradient
=======================  ==========================================  ============================
``default_hooks``        all-reduce as it is, in float16, bfloat16   4, 2, 2
``quantization_hooks``   int8 with error feedback                    1, all-gathered
``sparse_hooks``         the largest ones, with error feedback       8 of each that is sent
``powerSGD_hook``        low-rank products with error feedback       4 r (rows + columns) / elements
``post_localSGD_hook``   average rarely after a while                4, in a subgroup
=======================  ==========================================  ============================
"""
