"""Before money is spent: what each technique computes, stores, occupies and costs.

flops     operations of a model, by formula             machines   what a described machine does in a second
facts     what a plan is made from                      pace       seconds a token, of a machine described or measured
storage   bytes of a teacher cache, by codec            techniques/ one file each: who computes what
advice    what to do with the numbers                   estimate   all of it as one plan
"""
