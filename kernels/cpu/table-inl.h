// The functions above as a table.

constexpr KernelTable MakeTable(const char* name) {
  return {
      .name = name,
      .prepacked_bytes = PrepackedBytes,
      .prepack = Prepack,
      .prepacked_dense_bytes = PrepackedDenseBytes,
      .prepack_dense = PrepackDense,
      .activation_bytes = ActivationBytes,
      .quantize_activations = QuantizeActivations,
      .matmul = Matmul,
      .matmul_dense = MatmulDense,
      .get_row = GetRow,
      .rms_norm = RmsNorm,
      .rope = Rope,
      .silu_mul = SiluMul,
      .add = AddTo,
      .store_kv = StoreKv,
      .attention_scratch_floats = AttentionScratchFloats,
      .attention = Attention,
      .quantized_head_bytes = QuantizedHeadBytes,
      .quantize_kv = QuantizeKv,
      .attention_quantized = AttentionQuantized,
      .read = Read,
      .multiply_bytes = MultiplyBytes,
      .multiply_floats = MultiplyFloats,
  };
}
