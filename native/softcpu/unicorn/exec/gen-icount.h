/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What a translated block does first and last; found in place of Unicorn's
 * header of this name while Unicorn is compiled for vmm._softcpu.
 *
 * Unicorn calls a helper at the start of every block to ask whether to leave.
 * Here the block itself looks at the word that asks it to (QEMU's icount
 * decrementer, whose high half other threads make negative) and adds its
 * length to the vCPU's instruction counter, for which CPUState's otherwise
 * unused random_seed serves.
 *
 * Of a CPU whose icount_budget, unused otherwise, too, is not 0, a block also
 * leaves before its first instruction once that many have been counted: what is
 * due then is seen to at the same instruction in every run.
 */
#ifndef GEN_ICOUNT_H
#define GEN_ICOUNT_H

/* Between the two calls for one block; translation never nests in a thread. */
static __thread TCGLabel *gen_tb_leave;
static __thread TCGOp *gen_tb_length;
static __thread TCGLabel *gen_tb_due; /* NULL: the CPU has no such limit */

static inline void gen_tb_start(TCGContext *tcg_ctx, TranslationBlock *tb)
{
    const intptr_t request = offsetof(ArchCPU, neg.icount_decr.u32) - offsetof(ArchCPU, env);
    const intptr_t counter = offsetof(ArchCPU, parent_obj.random_seed) - offsetof(ArchCPU, env);
    TCGv_i32 leave = tcg_temp_new_i32(tcg_ctx);
    TCGv_i64 total = tcg_temp_new_i64(tcg_ctx);
    TCGv_i64 length = tcg_temp_new_i64(tcg_ctx);

    gen_tb_leave = gen_new_label(tcg_ctx);
    tcg_gen_ld_i32(tcg_ctx, leave, tcg_ctx->cpu_env, request);
    tcg_gen_brcondi_i32(tcg_ctx, TCG_COND_LT, leave, 0, gen_tb_leave);
    gen_tb_due = NULL;
    if (tcg_ctx->uc->cpu->icount_budget != 0) {
        const intptr_t limit = offsetof(ArchCPU, parent_obj.icount_budget) - offsetof(ArchCPU, env);

        gen_tb_due = gen_new_label(tcg_ctx);
        tcg_gen_ld_i64(tcg_ctx, total, tcg_ctx->cpu_env, counter);
        tcg_gen_ld_i64(tcg_ctx, length, tcg_ctx->cpu_env, limit);
        tcg_gen_brcond_i64(tcg_ctx, TCG_COND_GEU, total, length, gen_tb_due);
    }
    tcg_gen_ld_i64(tcg_ctx, total, tcg_ctx->cpu_env, counter);
    /* The block's length is known only at its end: see gen_tb_end. */
    tcg_gen_movi_i64(tcg_ctx, length, 0);
    gen_tb_length = tcg_last_op(tcg_ctx);
    tcg_gen_add_i64(tcg_ctx, total, total, length);
    tcg_gen_st_i64(tcg_ctx, total, tcg_ctx->cpu_env, counter);
    tcg_temp_free_i64(tcg_ctx, length);
    tcg_temp_free_i64(tcg_ctx, total);
    tcg_temp_free_i32(tcg_ctx, leave);
}

static inline void gen_tb_end(TCGContext *tcg_ctx, TranslationBlock *tb, int num_insns)
{
    tcg_set_insn_param(gen_tb_length, 1, num_insns);
    if (gen_tb_due != NULL) {
        TCGv_i32 ones = tcg_temp_new_i32(tcg_ctx);

        /* As somebody who asks to leave does. */
        gen_set_label(tcg_ctx, gen_tb_due);
        tcg_gen_movi_i32(tcg_ctx, ones, -1);
        tcg_gen_st16_i32(tcg_ctx, ones, tcg_ctx->cpu_env,
                         offsetof(ArchCPU, neg.icount_decr.u16.high) - offsetof(ArchCPU, env));
        tcg_gen_movi_i32(tcg_ctx, ones, true);
        tcg_gen_st8_i32(tcg_ctx, ones, tcg_ctx->cpu_env,
                        offsetof(ArchCPU, parent_obj.exit_request) - offsetof(ArchCPU, env));
        tcg_temp_free_i32(tcg_ctx, ones);
    }
    gen_set_label(tcg_ctx, gen_tb_leave);
    tcg_gen_exit_tb(tcg_ctx, tb, TB_EXIT_REQUESTED);
}

/* Translators bracket port instructions with these when instructions are counted exactly; never here. */
static inline void gen_io_start(TCGContext *tcg_ctx)
{
    (void)tcg_ctx;
}

static inline void gen_io_end(TCGContext *tcg_ctx)
{
    (void)tcg_ctx;
}

#endif
